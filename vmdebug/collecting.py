"""Chooses the collector of a trace: the plugin in QEMU or the guest's kernel if they can, otherwise GDB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from vmdebug import guest_tracing, loaded_modules, replaying, run_control, running_kernel
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import HostError, StateError, UsageError
from vmdebug.running_kernel import RunningKernel
from vmdebug.spelling import option
from vmdebug.trace.collector import Collector
from vmdebug.trace.expressions.compiled import Compiled
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.module_image import PlacedModule
from vmdebug.trace.expressions.resolving import needs_resolving, resolved
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.guest_timed import GuestTimed
from vmdebug.trace.merged import MergedCollector, Part
from vmdebug.trace.plugin.collector import PluginCollector
from vmdebug.trace.probe import Wanted
from vmdebug.trace.selecting import collected
from vmdebug.vm import Vm, tracing

By = Literal["auto", "plugin", "guest", "gdb"]
"""The collector that the caller asks for."""

BY: tuple[By, ...] = ("auto", "plugin", "guest", "gdb")


TRACE_SECONDS = 30.0
"""How long a trace may take to begin, and to end; the same as for GDB commands that need a stopped guest."""


class Choice(NamedTuple):
    """A collector, why it was chosen, on one line, and the trace with its patterns resolved."""

    collector: Collector
    reason: str
    wanted: Wanted


def choose(
    by: By,
    wanted: Wanted,
    machine: Vm,
    *,
    attached: Gdb | None,
    attach: Callable[[], Gdb],
    force: bool,
    timeout: float,
) -> Choice:
    """Return the collector of a trace.

    Args:
        by: The collector; `auto` is the plugin or the guest's kernel, and GDB for the probes that the plugin
            cannot collect.
        wanted: The trace.
        machine: The VM.
        attached: The GDB of the session, if it has one.
        attach: Returns that GDB, or attaches one.
        force: Whether to accept symbols of another build.
        timeout: Seconds for the trace to begin, and to end.

    Raises:
        UsageError: there is no such collector.
        NotCompiledError: with `plugin` or `guest`: a place or an expression cannot be compiled.
        StateError: with `plugin`: QEMU has not loaded the plugin, or the plugin cannot collect this. With
            `guest`: the guest does not run, or has no shell; or its kernel has no kprobe events.
        MismatchError: the symbols are not those of the kernel that runs.
        VmdebugError: GDB cannot be attached.
    """
    check(by)
    modules = loaded_modules.needed(wanted, machine, timeout=timeout)
    wanted = _resolved(wanted, machine, modules)
    if by == "gdb":
        return Choice(attach().collector(timeout=timeout), "", wanted)
    gdb = attached if attached and run_control.is_connected(attached) else None
    if by == "auto" and replaying.of(machine) is not None:
        return _replayed(wanted, machine, gdb, modules, attach=attach, force=force, timeout=timeout)
    return _live(by, wanted, machine, gdb, modules, attach=attach, force=force, timeout=timeout)


def _live(
    by: By,
    wanted: Wanted,
    machine: Vm,
    gdb: Gdb | None,
    modules: tuple[PlacedModule, ...],
    *,
    attach: Callable[[], Gdb],
    force: bool,
    timeout: float,
) -> Choice:
    """Return the collector of a trace of a guest that is no replay, or of the one that `by` names."""
    kernel, why = None, ""
    if by in ("auto", "plugin"):
        try:
            kernel = _ready(wanted, machine, gdb, modules, force=force)
            trace = kernel.compiled(wanted)
        except (NotCompiledError, HostError, StateError) as error:
            if by == "plugin":
                raise
            why = error.message
        else:
            reason = "" if by == "plugin" else "it can collect all of this"
            return Choice(_plugin(trace, kernel, machine, gdb, timeout), reason, wanted)
    # What the plugin cannot compile, the guest cannot fetch either, except tracepoints.
    if kernel is None or guest_tracing.needed(wanted):
        try:
            return Choice(_guest(wanted, machine, gdb, modules, force=force, timeout=timeout), why, wanted)
        except (NotCompiledError, HostError, StateError) as error:
            if by == "guest" or guest_tracing.needed(wanted):
                raise
            why = "; ".join(dict.fromkeys((why, error.message)))
    if kernel is None:
        return Choice(attach().collector(timeout=timeout), why, wanted)
    return _shared(wanted, kernel, machine, attach(), timeout=timeout, why=why)


def _replayed(
    wanted: Wanted,
    machine: Vm,
    gdb: Gdb | None,
    modules: tuple[PlacedModule, ...],
    *,
    attach: Callable[[], Gdb],
    force: bool,
    timeout: float,
) -> Choice:
    """Return the collector of a trace in a replay, whose guest takes no commands: the plugin, or GDB."""
    why = "the plugin has only the host's durations"
    if not wanted.ret and wanted.longer is None:
        try:
            kernel = _ready(wanted, machine, gdb, modules, force=force)
            trace = kernel.compiled(wanted)
        except (NotCompiledError, HostError, StateError) as error:
            why = error.message
        else:
            chosen = _plugin(trace, kernel, machine, gdb, timeout)
            return Choice(chosen, "it can collect all of this", wanted)
    return Choice(attach().collector(timeout=timeout), why, wanted)


def _shared(
    wanted: Wanted, kernel: RunningKernel, machine: Vm, gdb: Gdb, *, timeout: float, why: str
) -> Choice:
    """Return the collector of a trace of which the plugin cannot collect everything: GDB takes the rest."""
    possible, refused = _divided(wanted, kernel)
    by_gdb = gdb.collector(timeout=timeout)
    if not possible or not refused:
        return Choice(by_gdb, why, wanted)
    part = msgspec.structs.replace(wanted, probes=tuple(wanted.probes[each] for each in possible))
    trace = kernel.compiled(part)
    parts = [Part(_plugin(trace, kernel, machine, gdb, timeout), possible), Part(by_gdb, tuple(refused))]
    index = next(iter(refused))
    more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
    reason = f"GDB collects {wanted.probes[index].where}{more}: {refused[index]}"
    return Choice(MergedCollector(parts), reason, wanted)


def check(by: str) -> None:
    """Check the name of a collector.

    Raises:
        UsageError: there is no such collector.
    """
    if by not in BY:
        raise UsageError(f"there is no collector {by!r}", hint=f"the collectors are {', '.join(BY)}")


def _resolved(wanted: Wanted, machine: Vm, modules: Sequence[PlacedModule]) -> Wanted:
    vmlinux = machine.state.spec.kernel.vmlinux
    if vmlinux is None or not needs_resolving(wanted):
        return wanted
    with Kernel(vmlinux, modules) as kernel:
        return resolved(wanted, kernel)


def _divided(wanted: Wanted, kernel: RunningKernel) -> tuple[tuple[int, ...], dict[int, str]]:
    """Return the indexes of the probes that can be compiled, and the reasons for the others."""
    possible: list[int] = []
    refused: dict[int, str] = {}
    for index, probe in enumerate(wanted.probes):
        alone = msgspec.structs.replace(wanted, probes=(probe,))
        try:
            kernel.compiled(alone)
        except NotCompiledError as error:
            refused[index] = error.message
        else:
            possible.append(index)
    return tuple(possible), refused


def _ready(
    wanted: Wanted, machine: Vm, gdb: Gdb | None, modules: tuple[PlacedModule, ...], *, force: bool
) -> RunningKernel:
    """Return the kernel of a VM whose QEMU has loaded the plugin.

    Raises:
        StateError: QEMU has not loaded it, or it cannot read what the trace wants there.
        NotCompiledError: there is no vmlinux.
        MismatchError: the vmlinux is not that of the kernel that runs.
    """
    if wanted.activity:
        raise StateError(
            "only the guest's kernel records switches of tasks and interrupts",
            hint=f"let it collect: {option('by', 'guest')}",
        )
    tracing.check_loaded(
        machine.rundir,
        machine.state.untraceable,
        "the guest or GDB",
        reads=not wanted.count_only or bool(wanted.when),
    )
    return running_kernel.find(machine, gdb, modules, force=force)


def _guest(
    wanted: Wanted,
    machine: Vm,
    gdb: Gdb | None,
    modules: tuple[PlacedModule, ...],
    *,
    force: bool,
    timeout: float,
) -> Collector:
    """Return the collector that uses the guest's own kernel; see `guest_tracing.collector`."""
    guest = run_control.guest_of(machine, gdb, timeout)
    guest_tracing.check(machine, running=guest.running)
    kernel = running_kernel.find(machine, gdb, modules, force=force)
    return guest_tracing.collector(
        kernel.compiled,
        collected(wanted),
        machine,
        running=lambda: guest.running,
        timeout=timeout,
    )


def _plugin(
    trace: Compiled, kernel: RunningKernel, machine: Vm, gdb: Gdb | None, timeout: float
) -> Collector:
    guest = run_control.guest_of(machine, gdb, timeout)
    collector = PluginCollector(
        machine.rundir.trace,
        machine.name,
        guest,
        trace,
        kernel.row,
        vmlinux=kernel.vmlinux,
        modules=kernel.modules,
        timeout=timeout,
    )
    return collector if replaying.of(machine) is None else GuestTimed(collector)
