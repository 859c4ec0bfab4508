"""Finds the death of a guest that QEMU takes for running and whose console does not show it.

After a panic, a kernel without a pvpanic driver loops; a halted kernel stops all CPUs. With `quiet`, or on a
full disk, the console's log has nothing about either.
"""

from __future__ import annotations

import contextlib
import re

from vmdebug import arch
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.vm.kernel_log import KernelLog, RunningVm

LOOK_SECONDS = 10.0
"""How long it may take to read the kernel's log: 10 ms is usual, 1 s after KASLR has moved the kernel."""

_HALTED = "all of its CPUs have halted with interrupts disabled"


def cause(vm: RunningVm) -> str:
    """Return how a guest died, according to the kernel's log in its memory or its CPUs; "" if it lives."""
    deadline = Deadline.after(LOOK_SECONDS)
    with KernelLog(vm) as log, contextlib.suppress(VmdebugError):  # its log cannot be found
        log.look(deadline=deadline)
    if log.death:
        return log.death
    with contextlib.suppress(VmdebugError):
        return _HALTED if _halted(vm, deadline) else ""
    return ""


def _halted(vm: RunningVm, deadline: Deadline) -> bool:
    """Whether no CPU can go on."""
    dead = re.compile(arch.by_name(vm.state.spec.kernel.arch).dead_cpu)
    with vm.connected(timeout=deadline.left("QEMU to answer")) as qmp:
        cpus = qmp.execute("query-cpus-fast")
        registers = qmp.execute("human-monitor-command", {"command-line": "info registers -a"})
    return len(dead.findall(registers)) == len(cpus)
