"""The arguments of the requests `launch` and `attach`.

Those of `launch` are the options of `vmdebug start`, spelled as in vmdebug.toml or in Python, and those of
`Session`.
The client's `name` is the title of its configuration, so the VM's name is `vm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from vmdebug import config, spelling
from vmdebug.errors import UsageError
from vmdebug.guest_options import GuestOptions, StartOptions, changed
from vmdebug.spelling import nearest

Request = Literal["launch", "attach"]

EDITORS = frozenset(
    {
        "name", "type", "request", "adapter", "label", "presentation", "noDebug", "debugServer",
        "preLaunchTask", "postDebugTask", "internalConsoleOptions", "serverReadyAction", "console.fontSize",
        "suppressMultipleSessionWarning", "trace", "outputCapture", "restart", "tcp_connection", "timeout_ms",
    }
)  # fmt: skip
"""What editors pass along, which is for themselves. So is what begins with two underscores."""

Seconds = float


class Session(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The arguments that are not options of a guest.

    Args:
        vm: The VM's name: of the running one to attach to, or for the one to start.
        guest: GUEST, as `vmdebug start` takes it.
        cwd: Where relative paths start; None: the adapter's directory.
        build: Whether to run make in the kernel's tree first.
        until: A function to run the guest to first.
        timeout: Seconds that this may take.
        stop_on_entry: Whether the guest is stopped when the session begins; None: `halt` of a guest that is
            started, and as it was found otherwise.
        source: The directory of the kernel's sources, as the editor shows them; None: found.
        source_map: Prefixes of recorded file names, and the directories that replace them.
        init_commands: GDB commands to run once GDB is connected.
        console: Whether to show the guest's console; None: that of a guest that is started.
        force: Whether to go on with symbols of another build than the kernel.
    """

    vm: str | None = None
    guest: str | None = None
    cwd: str | None = None
    build: bool = False
    until: str | None = None
    timeout: Seconds | None = None
    stop_on_entry: bool | None = None
    source: str | None = None
    source_map: dict[str, str] = {}
    init_commands: tuple[str, ...] = ()
    console: bool | None = None
    force: bool = False


_SESSION: Mapping[str, str] = {field.encode_name: field.name for field in msgspec.structs.fields(Session)}
_OF_LAUNCH = ("guest", "build")
_OPTIONS = {name.replace("_", "-"): name for name in StartOptions.__annotations__ if name != "name"}


class Asked(msgspec.Struct, frozen=True):
    """The arguments of a request.

    Args:
        session: Those of the session.
        said: The options of the guest that were given.
        ignored: Arguments that nobody knows, in words for the user.
    """

    session: Session
    said: dict[str, Any]
    ignored: tuple[str, ...]

    def options(self) -> GuestOptions:
        """Return the options of the guest: those of vmdebug.toml, and the given ones.

        Raises:
            UsageError: GUEST, an option or vmdebug.toml is invalid.
        """
        return changed(config.lookup(self.session.guest), self.said)


def parse(request: Request, arguments: Mapping[str, Any]) -> Asked:
    """Return the arguments of `launch` or `attach`.

    Raises:
        UsageError: one is of a wrong type, is not for this request, or looks like another one mistyped.
    """
    ours = {key: value for key, value in arguments.items() if key in _SESSION}
    said = {
        _OPTIONS[name]: value
        for key, value in arguments.items()
        if (name := key.replace("_", "-")) in _OPTIONS and key not in _OF_LAUNCH
    }
    rest = [key for key in arguments if key not in ours and key.replace("_", "-") not in _OPTIONS]
    unknown = [key for key in rest if key not in EDITORS and not key.startswith("__")]
    if request == "attach":
        _refuse_launch_options([*(key for key in _OF_LAUNCH if key in ours), *(set(said) - {"force"})])
    ignored = tuple(_ignored(request, key) for key in unknown)
    session = _session(ours)
    if session.vm is not None and request == "launch":
        said["name"] = session.vm
    return Asked(session, said, ignored)


def _session(ours: Mapping[str, Any]) -> Session:
    given = {key: value for key, value in ours.items() if value is not None}
    try:
        return msgspec.convert(given, Session)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        words = what.replace("array", "list").replace("object", "table").replace(" | null", "")
        raise UsageError(
            f'"{place.rstrip("`")}": {words}',
            hint="docs/howto/editors.md lists the arguments of launch and attach",
        ) from error


def _refuse_launch_options(found: list[str]) -> None:
    if found:
        raise UsageError(
            f"attach does not take {', '.join(found)}: that VM runs already",
            hint='start one with "request": "launch", or leave them out',
        )


def _ignored(request: Request, key: str) -> str:
    """Return the note about an unknown argument.

    Raises:
        UsageError: it looks like a known one.
    """
    near = nearest(key, [*_SESSION, *_OPTIONS])
    if near:
        raise UsageError(f'{request} has no argument "{key}"', hint=f'did you mean "{near}"?')
    return f'vmdebug: {request} has no argument "{key}", which is ignored'


def spell(name: str, value: spelling.Value = None) -> str:
    """Spell an option as an argument of `launch`: `"kernel"`, `"kernel": "TREE"`."""
    name = "vm" if name == "name" else name
    if value is None:
        return f'"{name}"'
    return f'"{name}": {msgspec.json.encode(value).decode()}'
