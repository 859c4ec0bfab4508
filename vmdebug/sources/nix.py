"""nix: builds its command lines, runs them, and decodes its answers and its progress.

Works with nix 2.8 (Debian 12) and later. So store paths come from `--json`, since `--print-out-paths` is
newer; and outputs of derivations are built with `nix-store --realise DRV!OUT`, which all versions accept,
while `nix build` has changed its syntax (`DRV!OUT`, `DRV^OUT`).
"""

from __future__ import annotations

import enum
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError
from vmdebug.progress import Report, Step

_NIX = (
    "nix",
    # Debian's nix.conf does not set them; setting them again is harmless.
    *("--extra-experimental-features", "nix-command flakes"),
    *("--log-format", "internal-json"),
)
_NIX_STORE = ("nix-store", "--log-format", "internal-json")


class Built(msgspec.Struct, frozen=True):
    """A derivation in the answer of `nix build --json`.

    Args:
        outputs: The store path of each requested output, by its name.
        drv: The path of the derivation; "" if nix does not print it.
    """

    outputs: dict[str, str]
    drv: str = msgspec.field(name="drvPath", default="")


def build(installables: Sequence[str], *, nix_args: Sequence[str] = ()) -> list[str]:
    """Return the command line that builds without a `result` link; see nix3-build(1).

    Args:
        installables: `FLAKEREF#ATTRIBUTE`, each of a derivation.
        nix_args: The user's options: `--impure`, `--override-input`.
    """
    return [*_NIX, "build", "--no-link", "--json", *installables, *nix_args]


def build_one(installable: str, *, nix_args: Sequence[str] = ()) -> list[str]:
    """Return the command line of `build` for one installable."""
    return build([installable], nix_args=nix_args)


def evaluate(installable: str, *, apply: str = "", nix_args: Sequence[str] = ()) -> list[str]:
    """Return the command line that prints a value as JSON; see nix3-eval(1).

    Args:
        installable: `FLAKEREF#ATTRIBUTE`, of any value.
        apply: A Nix function to apply to the value first; "" for none.
        nix_args: The user's options.
    """
    return [*_NIX, "eval", "--json", installable, *(("--apply", apply) if apply else ()), *nix_args]


def deriver(path: Path) -> list[str]:
    """Return the command line that names the derivation of a store path; see nix-store(1)."""
    return [*_NIX_STORE, "--query", "--deriver", str(path)]


def binding(drv: str, name: str) -> list[str]:
    """Return the command line that prints an environment variable of a derivation; see nix-store(1)."""
    return [*_NIX_STORE, "--query", "--binding", name, drv]


def show(drv: str) -> list[str]:
    """Return the command line that prints a derivation as JSON; see nix3-derivation-show(1)."""
    return [*_NIX, "derivation", "show", drv]


def references(drv: str) -> list[str]:
    """Return the command line that lists the inputs of a derivation; see nix-store(1)."""
    return [*_NIX_STORE, "--query", "--references", drv]


def outputs(drvs: Sequence[str]) -> list[str]:
    """Return the command line that lists the output paths of derivations; see nix-store(1)."""
    return [*_NIX_STORE, "--query", "--outputs", *drvs]


def realise_all(drv: str) -> list[str]:
    """Return the command line that builds or fetches every output of a derivation; see nix-store(1)."""
    return [*_NIX_STORE, "--realise", drv]


def realise(drv: str, output: str) -> list[str]:
    """Return the command line that builds or fetches one output of a derivation; see nix-store(1)."""
    return [*_NIX_STORE, "--realise", f"{drv}!{output}"]


def keep(paths: Sequence[Path], root: Path) -> list[str]:
    """Return the command line that makes a link a root of the garbage collector; see nix-store(1).

    Args:
        paths: Store paths; the link of the second is `ROOT-2`, and so on.
        root: The link of the first.
    """
    return [*_NIX_STORE, "--realise", *map(str, paths), "--add-root", str(root), "--indirect"]


T = TypeVar("T")


def ask(argv: Sequence[str], kind: type[T], *, what: str, report: Report, deadline: Deadline) -> T:
    """Run one of the command lines above that print JSON, and return the decoded answer.

    Args:
        argv: The command line.
        kind: The type of the answer.
        what: The name of the step, for reports and errors: "building the VM".
        report: Receives the progress.
        deadline: When to stop nix.

    Raises:
        HostError: nix is not installed.
        BuildError: nix failed, and the detail has its messages; or the answer is not a `kind`.
        DeadlineError: it took too long.
    """
    answer = run(argv, what=what, report=report, deadline=deadline)
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise BuildError(
            f"{what}: `{argv[0]}` printed an answer that vmdebug does not understand: {error}",
            hint="vmdebug needs nix 2.8 or later: check `nix --version`",
            detail=f"{shlex.join(argv)}\n{answer}",
        ) from error


def run(argv: Sequence[str], *, what: str, report: Report, deadline: Deadline) -> str:
    """Run one of the command lines above, and return its output.

    It runs in the current directory, where relative flake references start.

    Raises:
        HostError: nix is not installed.
        BuildError: nix failed; the detail has its messages.
        DeadlineError: it took too long.
    """
    program = process.find(argv[0], package="nix-bin")
    command = [str(program), *argv[1:]]
    report(Step(what))
    done = process.run(command, deadline=deadline, check=False, on_line=Progress(what, report).line)
    if done.status != 0:
        own = words(done.stderr)
        found = _ERROR.search(own)
        raise BuildError(
            f"{what}: {found[1] if found else f'`{argv[0]}` ended with status {done.status}'}",
            hint=_hint(own),
            detail=f"{shlex.join(argv)}\n{own}",
        )
    return done.stdout


class Activity(enum.IntEnum):
    """The type of a `start` event; numbers from src/libutil/logging.hh."""

    COPY_PATH = 100
    COPY_PATHS = 103
    BUILDS = 104
    BUILD = 105
    SUBSTITUTE = 108


class Result(enum.IntEnum):
    """The type of a `result` event; numbers from src/libutil/logging.hh."""

    BUILD_LOG_LINE = 101
    SET_PHASE = 104
    PROGRESS = 105


_ACTIVITY_VERBOSITY = 4
"""The highest verbosity of an activity to report; queries are above it."""

_MESSAGE_VERBOSITY = 2
"""The highest verbosity of a message that nix prints without `-v`."""

_LOG_LINES = 20
"""Number of lines of a failed build's log in an error."""


class Event(msgspec.Struct, frozen=True):
    """One `@nix {…}` line of `--log-format internal-json`.

    Args:
        action: `start`, `stop` or `result` of an activity, or `msg`.
        id: The activity.
        type: An `Activity` for `start`, a `Result` for `result`.
        level: Verbosity: 0 errors, 1 warnings, 2 notices.
        text: A description of what starts.
        fields: Values that depend on `type`.
        msg: A message, with ANSI colour codes.
    """

    action: str
    id: int = 0
    type: int = 0
    level: int = 0
    text: str = ""
    fields: tuple[Any, ...] = ()
    msg: str = ""


def event(line: str) -> Event | None:
    """Return the event of a line; None if it is not one."""
    if not line.startswith("@nix "):
        return None
    try:
        return msgspec.json.decode(line.removeprefix("@nix "), type=Event)
    except msgspec.DecodeError:
        return None


class Progress:
    """Turns nix's output into steps: what it builds or fetches, and how much is done."""

    def __init__(self, what: str, report: Report) -> None:
        self._report = report
        self._last = Step(what)
        self._counts: dict[int, tuple[int, int]] = {}  # activity: done, expected
        self._builds: dict[int, str] = {}  # activity: name of the derivation

    def line(self, line: str) -> None:
        """Read a line of nix's stderr; ignore it unless it is an event."""
        match event(line):
            case Event(action="start") as started:
                self._tell(self._started(started))
            case Event(action="result") as result:
                self._tell(self._result(result))

    def _started(self, started: Event) -> str:
        match started:
            case Event(type=Activity.BUILDS | Activity.COPY_PATHS, id=number):
                self._counts[number] = (0, 0)
                return ""
            case Event(type=Activity.BUILD, id=number, fields=(str(drv), *_)):
                self._builds[number] = name(drv)
                return self._builds[number]
            case Event(type=Activity.COPY_PATH | Activity.SUBSTITUTE, fields=(str(path), *_)):
                return f"fetching {name(path)}"
        return plain(started.text) if started.level <= _ACTIVITY_VERBOSITY else ""

    def _result(self, result: Event) -> str:
        match result:
            case Event(type=Result.PROGRESS, id=number, fields=(int(done), int(expected), *_)):
                if number in self._counts:
                    self._counts[number] = (done, expected)
            case Event(type=Result.BUILD_LOG_LINE | Result.SET_PHASE, id=number, fields=(str(text), *_)):
                if number in self._builds:
                    return f"{self._builds[number]}: {plain(text)}"
        return ""

    def _tell(self, note: str) -> None:
        done = sum(count[0] for count in self._counts.values())
        total = sum(count[1] for count in self._counts.values())
        step = Step(
            self._last.what,
            done=done if total else None,
            total=total or None,
            note=note or self._last.note,
        )
        if step != self._last:
            self._last = step
            self._report(step)


def words(stderr: str) -> str:
    """Return the messages that nix would have printed, and the end of the logs of the failed builds.

    In this log format nix omits the end of the log from "builder for … failed".
    """
    said: list[str] = []
    builds: dict[int, str] = {}
    logs: dict[str, list[str]] = {}
    for line in stderr.splitlines():
        match event(line):
            case None:
                said.append(plain(line))
            case Event(action="msg", level=level, msg=msg) if level <= _MESSAGE_VERBOSITY:
                said.append(plain(msg))
            case Event(action="start", type=Activity.BUILD, id=number, fields=(str(drv), *_)):
                builds[number] = drv
            case Event(action="result", type=Result.BUILD_LOG_LINE, id=number, fields=(str(text), *_)):
                logs.setdefault(builds.get(number, ""), []).append(plain(text))
    messages = "\n".join(said)
    for drv, log in logs.items():
        if drv and drv in messages:
            said += [f"the end of the log of {name(drv)}:", *(f"  {line}" for line in log[-_LOG_LINES:])]
    return "\n".join(said)


_ERROR = re.compile(r"^\s*error: (\S.*)", re.MULTILINE)
"""The first line with an error message; newer versions print `error:` alone above a trace."""

_FAILED_DRV = re.compile(r"(/\S+\.drv)' failed|Cannot build '(/\S+\.drv)'")


def _hint(own: str) -> str:
    failed = _FAILED_DRV.search(own)
    if failed is not None:
        return f"read the whole log: nix-store --read-log {failed[1] or failed[2]}"
    return "pass `--show-trace` to nix to see where that was evaluated"


def lacks_attribute(error: BuildError) -> bool:
    """Whether nix failed because the flake has no such attribute."""
    return "does not provide attribute" in error.detail


def lacks_output(error: BuildError) -> bool:
    """Whether nix failed because the derivation has no output of the wanted name."""
    return "does not have wanted outputs" in error.detail


def reason(error: BuildError) -> str:
    """Return the first line of nix's error."""
    found = _ERROR.search(error.detail)
    return found[1] if found else error.detail.splitlines()[-1]


_STORE_PATH = re.compile(r"/.+?/[0-9a-df-np-sv-z]{32}-[^/]+")


def store_path(path: Path) -> Path | None:
    """Return the store path that contains a file; None for a file outside of any store.

    A store need not be /nix/store; the hash in nix's base 32 identifies its paths.
    """
    found = _STORE_PATH.match(str(path))
    return Path(found[0]) if found else None


def name(path: str) -> str:
    """Return the name in a store path, without its hash and `.drv`."""
    return path.rpartition("/")[2].partition("-")[2].removesuffix(".drv")


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def plain(text: str) -> str:
    """Return text without ANSI colour codes."""
    return _ANSI.sub("", text)
