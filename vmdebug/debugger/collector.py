"""The collector that uses GDB: breakpoints whose hits are recorded inside GDB and fetched in batches.

GDB's side is `gdbinit/vmd_trace.py`.
"""

from __future__ import annotations

import base64
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.debugger import gdb_errors
from vmdebug.debugger.breakpoint import Breakpoint
from vmdebug.debugger.breakpoint_table import BreakpointTable, Entry
from vmdebug.debugger.memory import Ask
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import Stop
from vmdebug.errors import GdbError, VmdebugError
from vmdebug.trace.collector import NO_ACTIVITY, Batch, Feature
from vmdebug.trace.hit import Argument, Call, Hit, Task
from vmdebug.trace.probe import Probe, Wanted

_BUSY = "while the target is running"
"""GDB's message for a command that it reads after a hit, before it has resumed the guest."""


class Host(Protocol):
    """The part of GDB that a collector uses, in addition to MI commands."""

    @property
    def state(self) -> State:
        """The run state of GDB and the guest."""

    def held(self, *, timeout: float) -> contextlib.AbstractContextManager[None]:
        """Stop the guest for a block."""

    def resume(self) -> None:
        """Set the guest running."""

    def interrupt(self, *, timeout: float) -> Stop:
        """Stop the guest."""


class _RawHit(msgspec.Struct, frozen=True, array_like=True):
    """A hit in the form of `gdbinit/vmd_trace.py`: the probe's index, then the fields of `Hit`."""

    probe: int
    time: float
    guest_time: float | None
    cpu: int
    task: tuple[int, str] | None
    args: list[Argument]
    backtrace: list[tuple[str, int, str, int]]
    ret: int | None
    duration: float | None = None


_RAW_HITS = msgspec.json.Decoder(list[_RawHit])


def decode(packed: str, probes: Sequence[Probe]) -> tuple[Hit, ...]:
    """Return the hits of one batch.

    Args:
        packed: JSON in base64, as GDB's side packs it.
        probes: The probes of the trace.
    """
    return tuple(
        Hit(
            symbol=probes[raw.probe].where,
            args=dict(zip(probes[raw.probe].args, raw.args, strict=True)),
            time=raw.time,
            guest_time=raw.guest_time,
            cpu=raw.cpu,
            task=None if raw.task is None else Task(*raw.task),
            backtrace=tuple(Call(*frame) for frame in raw.backtrace),
            ret=raw.ret,
            duration=raw.duration,
        )
        for raw in _RAW_HITS.decode(base64.b64decode(packed))
    )


class GdbCollector:
    """Collects one trace inside GDB: no hit is lost, and none costs a round trip.

    A call that QEMU reports twice is one hit; see `gdbinit/vmd_tcg_double_hit.py`.

    Args:
        host: Runs and stops the guest.
        ask: Executes an MI command.
        table: GDB's breakpoints; the trace's are among them while it collects.
        timeout: Seconds for the guest to stop, and for GDB to answer.
    """

    name = "GDB"
    cannot: Mapping[Feature, str] = NO_ACTIVITY

    def __init__(self, host: Host, ask: Ask, table: BreakpointTable, timeout: float) -> None:
        self._host = host
        self._ask = ask
        self._table = table
        self._timeout = timeout
        self._probes: tuple[Probe, ...] = ()
        self._numbers: tuple[int, ...] = ()
        self._trace = ""
        self._began = 0.0
        self._stopped = False
        self._taken = 0
        self._counts: tuple[int, ...] = ()
        self._notes: tuple[str, ...] = ()

    def start(self, wanted: Wanted) -> Batch:
        """Set the breakpoints, and let a stopped guest run; see `Collector.start`.

        Raises:
            GdbError: there is no such place, or an expression or the condition can never be evaluated there.
            StateError: GDB is not attached.
            DeadlineError: the guest did not stop, or GDB did not answer.
        """
        self._stopped = self._host.state is State.STOPPED
        packed = base64.b64encode(msgspec.json.encode(wanted)).decode("ascii")
        with self._host.held(timeout=self._timeout):
            try:
                answer = self._ask(f"-vmd-trace-start {packed}", self._timeout)
            except GdbError as error:
                expressions = " ".join(wanted.expressions)
                raise gdb_errors.breakpoint_error(
                    error, "a trace", when=expressions, unknown=gdb_errors.UNKNOWN_PLACE_NOW
                ) from error
        self._probes = wanted.probes
        self._counts = (0,) * len(wanted.probes) if wanted.count_only else ()
        self._trace = answer["trace"]
        self._began = float(answer["started"])
        self._notes = _notes(answer)
        self._numbers = tuple(int(number) for number in answer["numbers"].split(","))
        for number in self._numbers:
            self._table.add(Entry(Breakpoint(number, "a trace")))
        if self._stopped:
            try:
                self._host.resume()
            except BaseException:
                with contextlib.suppress(VmdebugError):
                    self._end()
                raise
        return Batch(notes=self._notes, started=self._began)

    def take(self) -> Batch:
        """Return the hits since the last batch; the guest keeps running."""
        return self._fetch("-vmd-trace-take")

    def stop(self) -> Batch:
        """Delete the breakpoints, stop the guest if it was stopped before, and return the last hits."""
        if self._stopped and self._host.state is State.RUNNING:
            self._host.interrupt(timeout=self._timeout)
        if self._host.state is State.ENDED:
            return Batch(counts=self._counts, ended=self._ended(), notes=self._notes, started=self._began)
        return self._end()

    def _end(self) -> Batch:
        try:
            gone = self._host.state is State.GONE
            with contextlib.nullcontext() if gone else self._host.held(timeout=self._timeout):
                return self._fetch("-vmd-trace-end")
        finally:
            for number in self._numbers:
                self._table.remove(number)

    def _fetch(self, command: str) -> Batch:
        answer = self._answer(f"{command} {self._trace} {self._taken}")
        hits = decode(answer["hits"], self._probes)
        self._taken += len(hits)
        self._notes = _notes(answer) or self._notes
        full = answer["full"] == "1"
        if self._counts:
            self._count(hits)
            hits = ()
        return Batch(
            hits=hits,
            counts=self._counts,
            full=full,
            ended=self._ended(),
            notes=self._notes,
            started=self._began,
        )

    def _count(self, hits: Sequence[Hit]) -> None:
        found = Counter(hit.symbol for hit in hits)
        named = zip(self._probes, self._counts, strict=True)
        self._counts = tuple(before + found[probe.where] for probe, before in named)

    def _ended(self) -> str:
        state = self._host.state
        return "" if state is State.RUNNING else f"the guest is {state}"

    def _answer(self, command: str) -> Mapping[str, Any]:
        deadline = Deadline.after(self._timeout)
        while True:
            try:
                return self._ask(command, deadline.left(f"GDB to answer `{command}`"))
            except GdbError as error:
                # GDB's side keeps the hits until they are read, so no hit is lost.
                if _BUSY not in error.message + error.words:
                    raise


def _notes(answer: Mapping[str, Any]) -> tuple[str, ...]:
    packed = answer.get("notes")
    return tuple(msgspec.json.decode(base64.b64decode(packed))) if packed else ()
