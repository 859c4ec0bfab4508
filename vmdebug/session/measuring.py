"""`trace`, `coverage` and `profile` of a session."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from vmdebug import collecting, profiling
from vmdebug.collecting import TRACE_SECONDS, By, Choice
from vmdebug.covering import COVERAGE_SECONDS, Coverage
from vmdebug.debugger.gdb import Gdb
from vmdebug.profiling import ProfileOptions, Profiling
from vmdebug.trace import probe
from vmdebug.trace.probe import Probe, TraceOptions
from vmdebug.trace.probe import Wanted as WantedTrace
from vmdebug.trace.trace import Trace
from vmdebug.vm import Vm


class Measuring(ABC):
    """What a session's guest does: its calls, its lines, where it spends its time."""

    vm: Vm

    _force: bool

    _gdb: Gdb | None

    @property
    @abstractmethod
    def gdb(self) -> Gdb:
        """The attached GDB. The first use attaches it."""

    def trace(
        self,
        where: str | Sequence[Probe],
        *,
        by: By = "auto",
        timeout: float = TRACE_SECONDS,
        **options: Unpack[TraceOptions],
    ) -> Trace:
        """Return a trace: a sequence of hits, and a context manager that runs the guest in its block.

        The plugin in QEMU collects it without stopping the guest, if QEMU has loaded it (`trace_ready`) and
        it can collect all of the trace; or the guest's own kernel by kprobes, if the guest runs and its
        kernel has them. Otherwise GDB does, which stops the guest at each hit.

        Args:
            where: A symbol, file:line, `*expression`, a pattern of functions (`vfs_*`), or SYMBOL+N for the
                line N lines below the start of a function; or several probes with their own expressions.
            by: Who collects it: "auto", "plugin", "guest" or "gdb"; `Trace.collector` and `Trace.reason`
                have the choice of "auto".
            timeout: Seconds for the trace to begin, and to end: for the guest to stop, or for a CPU to pause.
            **options: `args=`, `when=`, `count=`, `backtrace=`, `ret=`, `count_only=`, `overflow=`, `until=`,
                `longer=`, `callees=`, `sched=`, `irqs=`; see `vmdebug.TraceOptions`.

        Raises:
            UsageError: an argument has the wrong form; with `by="plugin"` or `by="guest"` also: it cannot
                collect an expression.
            StateError: with `by="plugin"`: QEMU has not loaded the plugin, or it cannot collect this. With
                `by="guest"`: the guest does not run, has no agent, or its kernel has no kprobes.
            VmdebugError: GDB cannot be attached; see `gdb`.
        """
        wanted = probe.wanted(where, **options)
        chosen = self.collector(wanted, by, timeout=timeout)
        return Trace(chosen.collector, chosen.wanted, reason=chosen.reason)

    def collector(self, wanted: WantedTrace, by: By = "auto", *, timeout: float = TRACE_SECONDS) -> Choice:
        """Return a collector for one `vmdebug.Trace`, and why it was chosen.

        Args:
            wanted: The trace.
            by: See `trace`.
            timeout: See `trace`.

        Raises:
            VmdebugError: see `trace`.
        """
        return collecting.choose(
            by,
            wanted,
            self.vm,
            attached=self._gdb,
            attach=lambda: self.gdb,
            force=self._force,
            timeout=timeout,
        )

    def coverage(
        self, *, source: str | os.PathLike[str] | None = None, timeout: float = COVERAGE_SECONDS
    ) -> Coverage:
        """Return a context manager that records which lines and branches of the kernel the guest executes.

        The plugin in QEMU records it: TCG, and `trace_ready="yes"` with QEMUs before 9.2. The guest's state
        does not change: that of a stopped guest begins when the guest runs.

        Args:
            source: The directory of the kernel's source; None: where its debugging information says.
            timeout: Seconds for the recording to begin.

        Raises:
            VmdebugError: see `Coverage.begin`, when the block begins.
        """
        return Coverage(
            self.vm,
            gdb=self._gdb,
            force=self._force,
            source=None if source is None else Path(source),
            timeout=timeout,
        )

    def profile(self, *, timeout: float = TRACE_SECONDS, **options: Unpack[ProfileOptions]) -> Profiling:
        """Return a profile, a context manager: it samples all CPUs of the guest in its block.

        The plugin in QEMU samples if it is loaded, otherwise the guest's kernel, by perf events. After the
        block, `Profiling.profile` is a `vmdebug.Profile`.

        Args:
            timeout: Seconds for the profile to begin, and to end.
            **options: `by=`, `period=`, `rate=`, `event=`, `idle=`, `inlined=`; see `vmdebug.ProfileOptions`.

        Raises:
            UsageError: an argument has the wrong form.
            StateError: the guest does not run, has no agent, or its kernel has no perf events.
            MismatchError: the symbols are not those of the kernel that runs.
        """
        return profiling.prepare(self.vm, attached=self._gdb, force=self._force, timeout=timeout, **options)
