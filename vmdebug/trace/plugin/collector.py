"""The collector that uses the plugin in QEMU's translator."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vmdebug.arch import Arch
from vmdebug.errors import GuestDiedError, StateError, VmdebugError
from vmdebug.trace.collector import Batch, Feature
from vmdebug.trace.expressions.compiled import Compiled
from vmdebug.trace.expressions.generate import Shape
from vmdebug.trace.expressions.operations import Code, Op
from vmdebug.trace.hit import Argument, Hit, Task
from vmdebug.trace.plugin import wire
from vmdebug.trace.plugin.link import Link
from vmdebug.trace.plugin.wire import ExitPattern, Place, Request
from vmdebug.trace.probe import Wanted

SOON_SECONDS = 0.3
"""How long to wait until a vCPU of a running guest becomes idle; a guest at its shell needs 10 ms."""

_WORD = struct.Struct("<q")
_UNSIGNED = struct.Struct("<Q")
_FLOATS = {4: struct.Struct("<f"), 8: struct.Struct("<d")}


class Guest(Protocol):
    """How the collector runs and stops the guest."""

    @property
    def running(self) -> bool:
        """Whether it runs."""

    def resume(self) -> None:
        """Let it run."""

    def pause(self) -> None:
        """Stop it."""

    def nudge(self) -> None:
        """Stop the running guest for a moment, so that its vCPUs pause."""


class PluginCollector:
    """Collects one trace with the plugin.

    Args:
        socket: The plugin's socket.
        vm: The VM's name, for errors.
        guest: Runs and stops the guest.
        trace: The trace, compiled for its kernel.
        row: Its architecture.
        timeout: Seconds to wait for a vCPU to pause, so that the trace begins, and for the last record.
    """

    name = "the plugin"
    cannot: Mapping[Feature, str] = {"backtrace": "it does not unwind stacks; GDB does"}

    def __init__(
        self, socket: Path, vm: str, guest: Guest, trace: Compiled, row: Arch, *, timeout: float
    ) -> None:
        self._path = socket
        self._vm = vm
        self._guest = guest
        self._compiled = trace
        self._row = row
        self._timeout = timeout
        self._link: Link | None = None
        self._wanted = Wanted(())
        self._was_running = True
        self._given = 0
        self._started = 0

    def start(self, wanted: Wanted) -> Batch:
        """Pass the trace to the plugin, and let a stopped guest run; see `Collector.start`.

        Raises:
            StateError: QEMU has no plugin, or the guest's vCPUs cannot be paused.
            VmError: the plugin refuses the trace.
        """
        self._wanted = wanted
        self._was_running = self._guest.running
        link = Link(self._path, self._vm)
        try:
            link.begin(request(self._compiled, wanted, self._row))
            self._await(link)
        except BaseException:
            link.close()
            raise
        self._link = link
        return Batch(notes=self._compiled.notes)

    def _await(self, link: Link) -> None:
        """Wait until the plugin records: it begins when a vCPU becomes idle or resumes."""
        if not self._was_running:
            self._guest.resume()
        elif not link.wait_ready(SOON_SECONDS):
            self._guest.nudge()
        if not link.wait_ready(self._timeout):
            if not self._was_running:
                with contextlib.suppress(VmdebugError):
                    self._guest.pause()
            raise StateError(
                f"no CPU of {self._vm} pauses, so QEMU does not begin the trace",
                hint="stop and continue the guest in the GDB that is attached to it",
            )

    def take(self) -> Batch:
        """Return the hits since the last batch; the guest keeps running."""
        link = self._opened()
        return self._batch(link.take())

    def stop(self) -> Batch:
        """End the trace, stop the guest if it was stopped before, and return the rest."""
        link = self._opened()
        try:
            if not self._was_running and self._guest.running:
                self._guest.pause()
            # If QEMU has ended, its last records are still in our memory.
            with contextlib.suppress(GuestDiedError):
                link.finish(self._timeout)
            return self._batch(link.take())
        finally:
            self._link = None
            link.close()

    def _opened(self) -> Link:
        if self._link is None:
            raise StateError("the trace is not running")
        return self._link

    def _batch(self, chunks: Sequence[bytes]) -> Batch:
        link = self._opened()
        results, wanted = link.results, self._wanted
        self._started = results.started
        hits = tuple(self._hits(chunks))
        if link.hello.vcpus > 1 and not wanted.ret:
            hits = tuple(sorted(hits, key=lambda hit: hit.time))
        self._given += len(hits)
        return Batch(
            hits=hits,
            counts=tuple(link.counts(len(wanted.probes))) if wanted.count_only else (),
            full=wanted.count is not None and results.seen >= wanted.count,
            ended=self._ended(),
            notes=(*self._compiled.notes, *_lost(results, wanted)),
        )

    def _ended(self) -> str:
        if self._opened().gone:
            return "the guest is gone"
        return "" if self._guest.running else "the guest is stopped"

    def _hits(self, chunks: Sequence[bytes]) -> Iterator[Hit]:
        probes, compiled = self._wanted.probes, self._compiled
        for fields, values in wire.records(chunks):
            _, probe, cpu, time, clock, ret, present, flags, _, pid, comm = fields
            task = Task(pid, _text(comm)) if flags & wire.HAS_CONTEXT else None  # type: ignore[arg-type]
            result = compiled.results[probe] if flags & wire.HAS_RET else None
            yield Hit(
                symbol=probes[probe].where,
                args=dict(
                    zip(probes[probe].args, _values(values, compiled.shapes[probe], present), strict=True)
                ),
                time=max(time - self._started, 0) / 1e9,
                guest_time=clock / 1e9 if flags & wire.HAS_CLOCK else None,
                cpu=cpu,
                task=task,
                ret=None if result is None else narrowed(ret, result),
            )


def _lost(results: wire.Results, wanted: Wanted) -> list[str]:
    """Return notes about hits that are missing or incomplete."""
    notes = []
    if results.dropped:
        notes.append(f"{results.dropped} hits were dropped: they came faster than vmdebug could read them")
    if results.unevaluated:
        notes.append(
            f"{results.unevaluated} calls are not recorded, because the condition {wanted.when} reads memory"
            " that could not be read there"
        )
    if results.unpaired:
        notes.append(f"{results.unpaired} hits have no return value: too many calls had not returned yet")
    return notes


def _values(data: memoryview, shapes: Sequence[Shape], present: int) -> Iterator[Argument]:
    """Yield the values of a record."""
    at = 0
    for number, shape in enumerate(shapes):
        if not present >> number & 1:
            yield None
        elif shape.kind == "string":
            (length,) = _WORD.unpack_from(data, at)
            if length < 0:
                # The string could not be read: give its address, as GDB's collector does.
                yield _UNSIGNED.unpack_from(data, at + 8)[0]
                at += 16
            else:
                yield bytes(data[at + 8 : at + 8 + length]).decode(errors="replace")
                at += 8 + (length + 7) // 8 * 8
        elif shape.kind == "array":
            yield _text(bytes(data[at : at + shape.size]))
            at += (shape.size + 7) // 8 * 8
        elif shape.kind == "float":
            yield _FLOATS[shape.size].unpack_from(data, at)[0]
            at += 8
        else:
            yield (_WORD if shape.kind == "signed" else _UNSIGNED).unpack_from(data, at)[0]
            at += 8


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")


def narrowed(number: int, shape: Shape) -> int:
    """Return the value that a register holds for a type: its lower bytes, signed if the type is."""
    bits = 8 * shape.size
    number &= (1 << bits) - 1
    return number - (1 << bits) if shape.kind == "signed" and number >> (bits - 1) else number


def request(compiled: Compiled, wanted: Wanted, row: Arch) -> Request:
    """Return a compiled trace in the form of the plugin."""
    places = [
        Place(address=each.address, probe=each.probe, code=each.code, ranges=each.ranges)
        for each in compiled.places
    ]
    only_counts = wanted.count_only and not wanted.when
    context = () if wanted.count_only else compiled.context
    changes = _context_changes(compiled) if context else []
    flags = wire.DROP if wanted.overflow == "drop" else 0
    flags |= wire.COUNT_ONLY if wanted.count_only else 0
    flags |= wire.CACHE_CONTEXT if changes else 0
    return Request(
        probes=len(wanted.probes),
        places=(*places, *changes),
        registers=() if only_counts else compiled.registers,
        text=compiled.text,
        context=context,
        clock=() if wanted.count_only else compiled.clock,
        exits=tuple(
            ExitPattern(code=bytes.fromhex(e.code), mask=bytes.fromhex(e.mask), at=e.at, size=e.size)
            for e in row.function_exits
        ),
        thunks=compiled.thunks,
        limit=wanted.count or 0,
        flags=flags,
    )


def _context_changes(compiled: Compiled) -> list[Place]:
    """Return the places where the current task or a task's name changes; [] if they are not known."""
    if not all(compiled.addresses.changes):
        return []
    switch, switched, named = (each + compiled.slide for each in compiled.addresses.changes)
    end = (Op(Code.END),)
    code = ((named, compiled.addresses.name_end + compiled.slide),)
    return [
        Place(address=switch, kind=wire.TASK_CHANGES, code=end),
        Place(address=switched, kind=wire.TASK_CHANGED, code=end),
        Place(address=named, kind=wire.NAME_CHANGES, code=end, ranges=code),
    ]
