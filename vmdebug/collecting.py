"""Chooses the collector of a trace: the plugin in QEMU if it can collect all of the trace, otherwise GDB."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal, NamedTuple

from vmdebug import arch
from vmdebug.debugger import clients
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.runstate import State
from vmdebug.errors import HostError, StateError, UsageError
from vmdebug.spelling import option
from vmdebug.trace.collector import Collector
from vmdebug.trace.expressions.compiled import compiled
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.plugin.collector import PluginCollector
from vmdebug.trace.probe import Wanted
from vmdebug.vm import Vm, kernel_address

By = Literal["auto", "plugin", "gdb"]
"""The collector that the caller asks for."""

BY: tuple[By, ...] = ("auto", "plugin", "gdb")


TRACE_SECONDS = 30.0
"""How long a trace may take to begin, and to end; the same as for GDB commands that need a stopped guest."""


class Choice(NamedTuple):
    """A collector, and why it was chosen, on one line."""

    collector: Collector
    reason: str


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
        by: The collector; `auto` is the plugin, or GDB if the plugin cannot collect all of the trace.
        wanted: The trace.
        machine: The VM.
        attached: The GDB of the session, if it has one.
        attach: Returns that GDB, or attaches one.
        force: Whether to accept symbols of another build.
        timeout: Seconds for the trace to begin, and to end.

    Raises:
        UsageError: there is no such collector.
        NotCompiledError: with `plugin`: a place or an expression cannot be compiled.
        StateError: with `plugin`: QEMU has not loaded the plugin, or the plugin cannot collect this.
        MismatchError: the symbols are not those of the kernel that runs.
        VmdebugError: GDB cannot be attached.
    """
    if by not in BY:
        raise UsageError(f"there is no collector {by!r}", hint=f"the collectors are {', '.join(BY)}")
    if by == "gdb":
        return Choice(attach().collector(timeout=timeout), "")
    try:
        gdb = attached if attached and _connected(attached) else None
        found = _plugin(wanted, machine, gdb, force=force, timeout=timeout)
    except (NotCompiledError, HostError, StateError) as error:
        if by == "plugin":
            raise
        return Choice(attach().collector(timeout=timeout), error.message)
    return Choice(found, "" if by == "plugin" else "it can collect all of this")


def _connected(gdb: Gdb) -> bool:
    return gdb.state in (State.STOPPED, State.RUNNING)


def _plugin(wanted: Wanted, machine: Vm, gdb: Gdb | None, *, force: bool, timeout: float) -> Collector:
    state = machine.state
    spec = state.spec
    reads = not wanted.count_only or wanted.when
    if not machine.rundir.trace.exists() or (state.untraceable and reads):
        newer = "TCG, QEMU 9.2 or newer, and " if reads else ""  # what an older plugin cannot do
        raise StateError(
            state.untraceable or "QEMU has not loaded the plugin",
            hint=f"let GDB collect it, or start the VM anew with {newer}{option('trace_ready', 'yes')}",
        )
    vmlinux = spec.kernel.vmlinux
    if vmlinux is None:
        raise NotCompiledError(
            f"the guest {spec.guest} has no vmlinux, where the plugin's traces find functions"
        )
    row = arch.by_name(spec.kernel.arch)
    verdict = gdb.identity if gdb is not None else None
    if verdict is not None and verdict.state in ("proven", "placed", "other"):
        slide = verdict.slide
    else:
        kaslr = "nokaslr" not in spec.parameters
        slide = kernel_address.slide(machine.qmp, vmlinux, row, kaslr=kaslr, force=force)
    guest = _VmGuest(machine) if gdb is None else _GdbGuest(gdb, timeout)
    trace = compiled(wanted, vmlinux, row, slide)
    return PluginCollector(
        machine.rundir.trace, machine.name, guest, trace, row, vmlinux=vmlinux, timeout=timeout
    )


class _GdbGuest:
    """A guest that the session's GDB resumes and stops."""

    def __init__(self, gdb: Gdb, timeout: float) -> None:
        self._gdb = gdb
        self._timeout = timeout

    @property
    def running(self) -> bool:
        return self._gdb.state is State.RUNNING

    def resume(self) -> None:
        self._gdb.resume()

    def pause(self) -> None:
        self._gdb.interrupt(timeout=self._timeout)

    def nudge(self) -> None:
        with self._gdb.held(timeout=self._timeout):
            pass


class _VmGuest:
    """A guest that vmdebug resumes and stops with QMP, because the session has no GDB."""

    def __init__(self, machine: Vm) -> None:
        self._vm = machine

    @property
    def running(self) -> bool:
        return self._vm.status() == "running"

    def resume(self) -> None:
        self._check_free()
        self._vm.resume()

    def pause(self) -> None:
        self._check_free()
        self._vm.pause()

    def nudge(self) -> None:
        # If the GDB of another process is attached, `cont` would make it lose packets: do nothing, and wait
        # until a vCPU pauses by itself.
        with contextlib.suppress(StateError):
            self._check_free()
            self._vm.pause()
            self._vm.resume()

    def _check_free(self) -> None:
        clients.check_free(self._vm.state.gdb, self._vm.name)
