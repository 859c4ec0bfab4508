"""Nix as vmdebug asks it: command lines built here, run through `vmdebug.process`, answers decoded.

Works with 2.8, which Debian 12 has, and later ones. Two choices rest on that:
`--print-out-paths` is newer than 2.8, so `--json` tells the store paths; and
`nix build` has named a derivation's output `DRV!OUT`, `DRV^OUT` and not at all,
while `nix-store --realise DRV!OUT` has not changed.
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
    # Debian's nix.conf does not set them, and asking twice does no harm.
    *("--extra-experimental-features", "nix-command flakes"),
    *("--log-format", "internal-json"),
)
_NIX_STORE = ("nix-store", "--log-format", "internal-json")


class Built(msgspec.Struct, frozen=True):
    """One derivation that `nix build --json` tells of.

    Args:
        outputs: Store path of each output that was asked for, by its name.
        drv: The derivation's own path; "" where nix keeps it to itself.
    """

    outputs: dict[str, str]
    drv: str = msgspec.field(name="drvPath", default="")


def build(installables: Sequence[str], *, nix_args: Sequence[str] = ()) -> list[str]:
    """Return the command line that builds and leaves no `result` link; see nix3-build(1).

    Args:
        installables: `FLAKEREF#ATTRIBUTE`, each of a derivation.
        nix_args: The user's own options: `--impure`, `--override-input`.
    """
    return [*_NIX, "build", "--no-link", "--json", *installables, *nix_args]


def evaluate(installable: str, *, apply: str = "", nix_args: Sequence[str] = ()) -> list[str]:
    """Return the command line that prints a value as JSON; see nix3-eval(1).

    Args:
        installable: `FLAKEREF#ATTRIBUTE`, of any value.
        apply: A Nix function that makes of it what is printed; "" prints it as it is.
        nix_args: The user's own options.
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
    """Return the command line that lists what a derivation is made of; see nix-store(1)."""
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
        paths: Store paths; the second one's link is called `ROOT-2`, and so on.
        root: The first one's link.
    """
    return [*_NIX_STORE, "--realise", *map(str, paths), "--add-root", str(root), "--indirect"]


T = TypeVar("T")


def ask(argv: Sequence[str], kind: type[T], *, what: str, report: Report, deadline: Deadline) -> T:
    """Run one of the command lines above that answer in JSON.

    Args:
        argv: The command line.
        kind: What the answer is.
        what: The step's name, for the report and the error: "building the VM".
        report: Who is told how far it is.
        deadline: When nix is ended.

    Raises:
        HostError: nix is not installed.
        BuildError: nix failed, and the detail has its own words; or the answer is not a `kind`.
        DeadlineError: it took too long.
    """
    answer = run(argv, what=what, report=report, deadline=deadline)
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise BuildError(
            f"{what}: `{argv[0]}` answered what vmdebug does not understand: {error}",
            hint="nix 2.8 and later are; does `nix --version` say something else?",
            detail=f"{shlex.join(argv)}\n{answer}",
        ) from error


def run(argv: Sequence[str], *, what: str, report: Report, deadline: Deadline) -> str:
    """Run one of the command lines above; return what it printed.

    It runs in our directory, where relative flake references start from.

    Raises:
        HostError: nix is not installed.
        BuildError: nix failed; the detail has its own words.
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
    """What `start` is of; the numbers are those of src/libutil/logging.hh, which are the protocol."""

    COPY_PATH = 100
    COPY_PATHS = 103
    BUILDS = 104
    BUILD = 105
    SUBSTITUTE = 108


class Result(enum.IntEnum):
    """What `result` tells of an activity; numbers as for `Activity`."""

    BUILD_LOG_LINE = 101
    SET_PHASE = 104
    PROGRESS = 105


_TALKATIVE = 4
"""Verbosity up to which an activity is worth a look: "copying '/home/me/src'" is, a query is not."""

_NOTICE = 2
"""Verbosity up to which nix shows a message without `-v`."""

_LOG_LINES = 20
"""Lines of a failed build's log that an error shows."""


class Event(msgspec.Struct, frozen=True):
    """One `@nix {…}` line of `--log-format internal-json`.

    Args:
        action: `start`, `stop` or `result` of an activity, or `msg`.
        id: Which activity.
        type: For `start` of `Activity`, for `result` of `Result`.
        level: Verbosity: 0 errors, 1 warnings, 2 notices.
        text: What starts.
        fields: What belongs to `type`.
        msg: A message, with ANSI colours.
    """

    action: str
    id: int = 0
    type: int = 0
    level: int = 0
    text: str = ""
    fields: tuple[Any, ...] = ()
    msg: str = ""


def event(line: str) -> Event | None:
    """Return the event of a line; None when it is not one."""
    if not line.startswith("@nix "):
        return None
    try:
        return msgspec.json.decode(line.removeprefix("@nix "), type=Event)
    except msgspec.DecodeError:
        return None


class Progress:
    """Turns nix's lines into steps: what is built or fetched now, and how much of it is done."""

    def __init__(self, what: str, report: Report) -> None:
        self._report = report
        self._last = Step(what)
        self._counts: dict[int, tuple[int, int]] = {}  # activity: done, expected
        self._builds: dict[int, str] = {}  # activity: the derivation's name

    def line(self, line: str) -> None:
        """Take one line of nix's stderr; what is no event is passed over."""
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
        return plain(started.text) if started.level <= _TALKATIVE else ""

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
    """Return what nix would have told a person: its messages, and the end of the logs of builds it names.

    In this log format nix leaves the log's end out of "builder for … failed".
    """
    said: list[str] = []
    builds: dict[int, str] = {}
    logs: dict[str, list[str]] = {}
    for line in stderr.splitlines():
        match event(line):
            case None:
                said.append(plain(line))
            case Event(action="msg", level=level, msg=msg) if level <= _NOTICE:
                said.append(plain(msg))
            case Event(action="start", type=Activity.BUILD, id=number, fields=(str(drv), *_)):
                builds[number] = drv
            case Event(action="result", type=Result.BUILD_LOG_LINE, id=number, fields=(str(text), *_)):
                logs.setdefault(builds.get(number, ""), []).append(plain(text))
    messages = "\n".join(said)
    for drv, log in logs.items():
        if drv and drv in messages:
            said += [f"the end of {name(drv)}'s log:", *(f"  {line}" for line in log[-_LOG_LINES:])]
    return "\n".join(said)


_ERROR = re.compile(r"^\s*error: (\S.*)", re.MULTILINE)
"""The first line that says what is wrong; later versions write `error:` alone above a trace."""

_FAILED_DRV = re.compile(r"(/\S+\.drv)' failed|Cannot build '(/\S+\.drv)'")


def _hint(own: str) -> str:
    failed = _FAILED_DRV.search(own)
    if failed is not None:
        return f"the whole log: nix-store --read-log {failed[1] or failed[2]}"
    return "hand nix `--show-trace` to see where that was evaluated"


def lacks_attribute(error: BuildError) -> bool:
    """Whether nix failed because the flake has no such attribute, and not inside of what it has."""
    return "does not provide attribute" in error.detail


def reason(error: BuildError) -> str:
    """Return nix's error in one line."""
    found = _ERROR.search(error.detail)
    return found[1] if found else error.detail.splitlines()[-1]


_STORE_PATH = re.compile(r"/.+?/[0-9a-df-np-sv-z]{32}-[^/]+")


def store_path(path: Path) -> Path | None:
    """Return the store path that a file lies in; None for a file outside of any store.

    A store need not be /nix/store; its paths are known by their hash in nix's base 32.
    """
    found = _STORE_PATH.match(str(path))
    return Path(found[0]) if found else None


def name(path: str) -> str:
    """Return the part of a store path that a person reads, without the hash and `.drv`."""
    return path.rpartition("/")[2].partition("-")[2].removesuffix(".drv")


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def plain(text: str) -> str:
    """Return text without ANSI colours."""
    return _ANSI.sub("", text)
