"""The collector that uses the plugin in QEMU's translator."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vmdebug.arch import Arch
from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, StateError, VmdebugError
from vmdebug.trace.collector import NO_ACTIVITY, Batch, Feature
from vmdebug.trace.expressions import kernel_facts
from vmdebug.trace.expressions.compiled import Compiled
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.module_image import PlacedModule
from vmdebug.trace.expressions.operations import Code, Op
from vmdebug.trace.plugin import records, wire
from vmdebug.trace.plugin.link import Link
from vmdebug.trace.plugin.wire import ExitPattern, Place, Request
from vmdebug.trace.probe import Wanted
from vmdebug.trace.unwinding.backtrace import Backtraces

SOON_SECONDS, LATER_SECONDS = 0.3, 5.0
"""How long to wait until a vCPU of a running guest becomes idle; a guest at its shell needs 10 ms. The time
doubles up to the second value."""


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
        vmlinux: The kernel's symbols, for backtraces.
        modules: Modules whose functions backtraces name.
        timeout: Seconds to wait for a vCPU to pause, so that the trace begins, and for the last record.
    """

    name = "the plugin"
    cannot: Mapping[Feature, str] = NO_ACTIVITY

    def __init__(
        self,
        socket: Path,
        vm: str,
        guest: Guest,
        trace: Compiled,
        row: Arch,
        *,
        vmlinux: Path,
        modules: Sequence[PlacedModule] = (),
        timeout: float,
    ) -> None:
        self._path = socket
        self._vm = vm
        self._guest = guest
        self._compiled = trace
        self._row = row
        self._vmlinux = vmlinux
        self._modules = modules
        self._open = contextlib.ExitStack()
        self._unwind: records.Unwind | None = None
        self._timeout = timeout
        self._link: Link | None = None
        self._wanted = Wanted(())
        self._was_running = True

    def start(self, wanted: Wanted) -> Batch:
        """Pass the trace to the plugin, and let a stopped guest run; see `Collector.start`.

        Raises:
            StateError: QEMU has no plugin, or the guest's vCPUs cannot be paused.
            GuestDiedError: QEMU has ended.
            VmError: the plugin refuses the trace.
        """
        self._wanted = wanted
        self._was_running = self._guest.running
        if wanted.backtrace:
            kernel = self._open.enter_context(Kernel(self._vmlinux, self._modules, self._compiled.slide))
            self._unwind = Backtraces(kernel, self._row, self._compiled.slide).of
        link = Link(self._path, self._vm)
        try:
            link.begin(request(self._compiled, wanted, self._row))
            await_recording(link, self._guest, self._vm, running=self._was_running, timeout=self._timeout)
        except BaseException:
            link.close()
            self._open.close()
            raise
        self._link = link
        return Batch(notes=self._compiled.notes, started=link.results.started / 1e9)

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
            self._open.close()

    def _opened(self) -> Link:
        if self._link is None:
            raise StateError("the trace is not running")
        return self._link

    def _batch(self, chunks: Sequence[bytes]) -> Batch:
        link = self._opened()
        results, wanted = link.results, self._wanted
        hits = tuple(records.hits(chunks, wanted.probes, self._compiled, results.started, self._unwind))
        if link.hello.vcpus > 1 and not wanted.ret:
            hits = tuple(sorted(hits, key=lambda hit: hit.time))
        return Batch(
            hits=hits,
            counts=tuple(link.counts(len(wanted.probes))) if wanted.count_only else (),
            full=wanted.count is not None and results.seen >= wanted.count,
            ended=self._ended(),
            notes=(*self._compiled.notes, *_lost(results, wanted)),
            started=results.started / 1e9,
        )

    def _ended(self) -> str:
        if self._opened().gone:
            return "the guest is gone"
        return "" if self._guest.running else "the guest is stopped"


def await_recording(link: Link, guest: Guest, vm: str, *, running: bool, timeout: float) -> None:
    """Wait until the plugin records: it begins when a vCPU becomes idle or resumes.

    Args:
        link: The connection, with its request.
        guest: The guest; it runs afterwards.
        vm: The VM's name, for the error.
        running: Whether the guest ran before.
        timeout: Seconds to wait.

    Raises:
        StateError: no vCPU pauses; the guest is as before.
        GuestDiedError: QEMU has ended.
    """
    if not running:
        guest.resume()
    deadline = Deadline.after(timeout)
    seconds = SOON_SECONDS
    while not link.wait_ready(min(seconds, deadline.remaining)):
        if link.gone:
            raise GuestDiedError(f"QEMU of {vm} ended before it began to record")
        if not deadline.passed:
            seconds = min(2 * seconds, LATER_SECONDS)
            if running:
                # Again and again: one that comes before the plugin has read the request does nothing.
                guest.nudge()
            continue
        if not running:
            with contextlib.suppress(VmdebugError):
                guest.pause()
        raise StateError(
            f"no CPU of {vm} pauses, so QEMU does not begin to record",
            hint="stop and continue the guest in the GDB that is attached to it",
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
        memory=_memory(compiled),
    )


def _memory(compiled: Compiled) -> tuple[int, int, int]:
    """Return where the kernel keeps the addresses by which the plugin finds the guest's RAM."""
    where = compiled.addresses
    physical_base, direct_map = (
        each + compiled.slide if each else 0 for each in (where.physical_base, where.direct_map)
    )
    return physical_base, direct_map, kernel_facts.DIRECT_MAP


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
