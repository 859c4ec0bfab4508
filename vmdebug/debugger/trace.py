"""Traces: what a function was called with, each time, while the guest runs.

Hits are noted inside GDB (`gdbinit/vmd_trace.py`) and fetched in batches. A `Hit` says
nothing of who collected it.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, overload

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.debugger.breakpoints import Breakpoint
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import Stop
from vmdebug.errors import GdbError, UsageError, VmdebugError

Ask = Callable[[str], Mapping[str, Any]]
"""Has GDB carry out an MI command, and returns what the result carries."""

TAKE_SECONDS = 30.0
"""How long GDB may refuse to hand over hits because more of them come."""

_BUSY = "while the target is running"
"""What GDB says when it gets to a command in the moment between a hit and going on from it."""

Argument = int | float | str | None
"""What an expression gave: an address is a number, a `char *` its string; None cannot be known there."""


class Task(msgspec.Struct, frozen=True):
    """Who called: what the CPU ran.

    Args:
        pid: The kernel's pid, which people call a thread's id.
        comm: Its name.
    """

    pid: int
    comm: str


class Call(msgspec.Struct, frozen=True):
    """One frame of a hit's backtrace.

    Args:
        function: Its name, "" where it isn't known.
        pc: Where in it.
        file: Path of its source, "" where it isn't known.
        line: Line of it, 0 where it isn't known.
    """

    function: str
    pc: int
    file: str = ""
    line: int = 0


class Hit(msgspec.Struct, frozen=True):
    """One call of a traced function.

    Args:
        symbol: The place, as it was asked for.
        args: The value of each expression, by its text.
        time: Seconds of the host's since the trace began.
        guest_time: Seconds since the guest booted, as of its last timer tick; None where it isn't known.
        cpu: Number of the CPU.
        task: What it ran; None where it isn't known.
        backtrace: The frames, the innermost first, where they were asked for.
        ret: What it returned, where that was asked for and is known.
    """

    symbol: str
    args: dict[str, Argument]
    time: float
    guest_time: float | None
    cpu: int
    task: Task | None
    backtrace: tuple[Call, ...] = ()
    ret: int | None = None


class Probe(msgspec.Struct, frozen=True, array_like=True):
    """A place to trace, and what to note there.

    Args:
        where: A symbol, file:line, `*expression`.
        args: Expressions in the language of the place.
    """

    where: str
    args: tuple[str, ...] = ()


class Wanted(msgspec.Struct, frozen=True):
    """What a trace is to collect, as GDB's side reads it.

    Args:
        probes: The places.
        when: Condition of a hit, "" for none; a hit where it cannot be evaluated is none, which `notes` tell.
        count: How many hits; None for any number.
        backtrace: Whether to note the frames.
        ret: Whether to note what is returned.
    """

    probes: tuple[Probe, ...]
    when: str = ""
    count: int | None = None
    backtrace: bool = False
    ret: bool = False


class _Noted(msgspec.Struct, frozen=True, array_like=True):
    """A hit as GDB's side hands it over."""

    probe: int
    time: float
    guest_time: float | None
    cpu: int
    task: tuple[int, str] | None
    args: list[Argument]
    backtrace: list[tuple[str, int, str, int]]
    ret: int | None


_NOTED = msgspec.json.Decoder(list[_Noted])


def decode(packed: str, probes: Sequence[Probe]) -> list[Hit]:
    """Return the hits of one batch.

    Args:
        packed: JSON in base64, as GDB's side packs it.
        probes: What was asked for.
    """
    return [
        Hit(
            symbol=probes[noted.probe].where,
            args=dict(zip(probes[noted.probe].args, noted.args, strict=True)),
            time=noted.time,
            guest_time=noted.guest_time,
            cpu=noted.cpu,
            task=None if noted.task is None else Task(*noted.task),
            backtrace=tuple(Call(*frame) for frame in noted.backtrace),
            ret=noted.ret,
        )
        for noted in _NOTED.decode(base64.b64decode(packed))
    ]


class Runner(Protocol):
    """What a trace asks of GDB besides its own commands; `gdb.Gdb` answers."""

    @property
    def state(self) -> State:
        """Where GDB and the guest stand."""

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Hold the guest stopped for a block."""

    def resume(self) -> None:
        """Set the guest running."""

    def interrupt(self) -> Stop:
        """Stop the guest."""


class Trace(Sequence[Hit]):
    """The hits of a trace; a context manager that runs the guest inside its block, and leaves it as it was.

    Each call is told once: none is lost, and of one that QEMU reports twice the second is passed over;
    see `gdbinit/vmd_twice.py`.

    Args:
        runner: Runs and stops the guest.
        ask: Has GDB carry out an MI command.
        planted: GDB's breakpoints by number, where the trace's are entered while it lasts.
        wanted: What to collect.
    """

    def __init__(self, runner: Runner, ask: Ask, planted: dict[int, Breakpoint], wanted: Wanted) -> None:
        self._runner = runner
        self._ask = ask
        self._planted = planted
        self._wanted = wanted
        self._numbers: tuple[int, ...] = ()
        self._trace = ""
        self._stopped = False
        self._full = False
        self._hits: list[Hit] = []
        self.notes: tuple[str, ...] = ()
        """What it cannot collect, and why, as far as it is known when hits were last fetched."""

    def __enter__(self) -> Self:
        self._stopped = self._runner.state is State.STOPPED
        packed = base64.b64encode(msgspec.json.encode(self._wanted)).decode("ascii")
        with self._runner.held():
            answer = self._ask(f"-vmd-trace-start {packed}")
        self._trace = answer["trace"]
        self.notes = _notes(answer)
        self._numbers = tuple(int(number) for number in answer["numbers"].split(","))
        self._planted.update({number: Breakpoint(number, "a trace") for number in self._numbers})
        if self._stopped:
            try:
                self._runner.resume()
            except BaseException:
                with contextlib.suppress(VmdebugError):
                    self._end()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stopped and self._runner.state is State.RUNNING:
            self._runner.interrupt()
        if self._runner.state is State.ENDED:
            self._trace = ""
            return
        self._end()

    def take(self) -> list[Hit]:
        """Return the hits that came since the last time; the guest runs on meanwhile."""
        return self._fetch("-vmd-trace-take") if self._trace else []

    @property
    def full(self) -> bool:
        """Whether it had as many hits as it was to have, when they were last fetched."""
        return self._full

    def __len__(self) -> int:
        self.take()
        return len(self._hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...

    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        self.take()
        return self._hits[index]

    def _end(self) -> None:
        try:
            gone = self._runner.state is State.GONE
            with contextlib.nullcontext() if gone else self._runner.held():
                self._fetch("-vmd-trace-end")
        finally:
            self._trace = ""
            for number in self._numbers:
                self._planted.pop(number, None)

    def _fetch(self, command: str) -> list[Hit]:
        answer = self._answer(f"{command} {self._trace} {len(self._hits)}")
        fresh = decode(answer["hits"], self._wanted.probes)
        self._full = answer["full"] == "1"
        self.notes = _notes(answer) or self.notes
        self._hits += fresh
        return fresh

    def _answer(self, command: str) -> Mapping[str, Any]:
        deadline = Deadline.after(TAKE_SECONDS)
        while True:
            try:
                return self._ask(command)
            except GdbError as error:
                # GDB's side keeps a hit until we have it: asking again loses none.
                if _BUSY not in error.message + error.words or deadline.passed:
                    raise


def _notes(answer: Mapping[str, Any]) -> tuple[str, ...]:
    packed = answer.get("notes")
    return tuple(msgspec.json.decode(base64.b64decode(packed))) if packed else ()


def parse(words: Sequence[str]) -> tuple[Probe, ...]:
    """Return the places that words name: SYMBOL[:EXPR,…].

    A line of a file is a place too: FILE:LINE[:EXPR,…].

    Raises:
        UsageError: a word names no place.
    """
    return tuple(_probe(word) for word in words)


def _probe(word: str) -> Probe:
    where, _, rest = word.partition(":")
    line, _, more = rest.partition(":")
    if line.isdigit():
        where, rest = f"{where}:{line}", more
    if not where:
        raise UsageError(f"{word!r} names no place", hint="write it SYMBOL:EXPR,EXPR: vfs_read:count")
    return Probe(where, tuple(_split(rest)))


def _split(text: str) -> list[str]:
    """Return expressions between commas; those within brackets stay."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
