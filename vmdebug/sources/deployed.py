"""What `vmdebug deploy` brought to which machine, so that its kernel can be debugged there later.

A flake moves on; a machine runs what it was given. One small file a machine, below
$XDG_DATA_HOME/vmdebug, else ~/.local/share/vmdebug.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from pathlib import Path

import msgspec
import platformdirs

from vmdebug import guest
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel
from vmdebug.sources import cache


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """A system on a machine.

    Args:
        host: USER@HOST.
        guest: GUEST as its user wrote it.
        toplevel: The system's store path.
        kernel: What it boots, with what belongs to it here.
    """

    host: str
    guest: str
    toplevel: Path
    kernel: Kernel


def remember(deployed: Deployed) -> None:
    """Write down what a machine has now.

    Raises:
        HostError: the directory is not ours to write.
    """
    cache.write(_file(deployed.host), guest.encode(deployed))


def find(host: str | None) -> Deployed:
    """Return what was deployed to a host; to the only one, where None is given.

    Raises:
        UsageError: there is none, there are several, or what it had is no longer here.
    """
    known = _all()
    found = [each for each in known if host in (None, each.host)]
    names = ", ".join(each.host for each in known) or "none"
    if len(found) != 1:
        what = f"nothing was deployed to {host}" if host else "it is not said which kernel the machine runs"
        raise UsageError(what, hint=f"give --guest GUEST, or --target-host; deployed to: {names}")
    vmlinux = found[0].kernel.vmlinux
    if vmlinux is not None and not vmlinux.is_file():
        raise UsageError(
            f"the symbols of what {found[0].host} runs are no longer there: {vmlinux}",
            hint=f"get them back: --guest {found[0].guest}",
        )
    return found[0]


def _directory() -> Path:
    return Path(platformdirs.user_data_dir("vmdebug")) / "deployed"


def _file(host: str) -> Path:
    return _directory() / f"{urllib.parse.quote(host, safe='@')}.json"


def _all() -> list[Deployed]:
    found = []
    for path in sorted(_directory().glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found.append(guest.decode(path.read_bytes(), Deployed))
    return found
