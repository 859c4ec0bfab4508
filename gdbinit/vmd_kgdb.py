"""kgdb: how the kernel's own gdbstub, on a physical machine, differs from QEMU's.

Its threads are tasks, with complete registers only for those that a CPU runs. It has no control registers,
and GDB cannot stop it: only the machine can enter kgdb. See Documentation/dev-tools/kgdb.rst, and
kernel/debug/gdbstub.c for the numbers of threads.
"""

from __future__ import annotations

import contextlib
import re

import gdb
import vmd_monitor

SHADOW = 0xFFFFFFFE
"""Number of the thread that represents CPU 0; CPU n has this number minus n: `getthread`."""

_SHADOWS = 1 << 16

ENTRY = "kgdb_breakpoint"
"""The function in which the kernel stops when it enters kgdb by sysrq or `kgdbwait`."""


def on() -> bool:
    """Whether GDB is connected to kgdb: $vmd_kgdb is set."""
    return bool(gdb.convenience_variable("vmd_kgdb"))


def select_running() -> None:
    """Select the task that entered kgdb.

    The stub's first stop reply names no thread. GDB selects the first one, the idle task of CPU 0, but shows
    the registers of the task that entered kgdb.
    """
    answer = gdb.execute("maint packet qC", to_string=True) or ""
    found = re.search(r'"QC([0-9a-f]+)"', answer)
    number = int(found[1], 16) if found else None
    for thread in gdb.selected_inferior().threads():
        if thread.ptid[1] == number:
            thread.switch()
    # Flush only now: GDB assumed that the stub had the first thread selected, and cached its registers.
    gdb.execute("maint flush register-cache", to_string=True)


def stuck_later() -> bool:
    """Whether a software breakpoint that is set now could not be removed later.

    A booting kernel has not write-protected its text yet. kgdb then writes a breakpoint as into any memory,
    and later tries to remove it in the same way. From mark_rodata_ro() on that fails, and the machine hits
    the breakpoint forever. See kgdb_arch_set_breakpoint() of arch/*/kernel/kgdb.c.
    """
    if not on():
        return False
    try:
        return bool(gdb.parse_and_eval("rodata_enabled && system_state < SYSTEM_RUNNING"))
    except gdb.error:
        return False


def cpus() -> list[gdb.InferiorThread]:
    """Return the stub's threads that represent CPUs, in the order of CPUs."""
    return [thread for _, thread in sorted(_shadows().items())]


def cpu_of(thread: gdb.InferiorThread) -> int:
    """Return the CPU that a thread represents; -1 for a task."""
    cpu = SHADOW - thread.ptid[1]
    return cpu if 0 <= cpu < _SHADOWS else -1


def banner() -> str:
    """Return the kernel's description of itself, which only a kernel with kdb gives."""
    with contextlib.suppress(gdb.error):
        said = vmd_monitor.ask("summary")
        facts = [fact[1] for line in said if (fact := re.match(r"(?:sysname|release|version)\s+(.+)", line))]
        if facts:
            return " ".join(facts)
    return "an unknown kernel: run `uname -a` on the machine"


def _shadows() -> dict[int, gdb.InferiorThread]:
    return {cpu_of(each): each for each in gdb.selected_inferior().threads() if cpu_of(each) >= 0}
