"""kgdb: where a kernel's own stub, on a machine that is no VM, is different from QEMU's.

Its threads are tasks, with what the CPU had in its registers for those that run and little for the
others; it knows no control registers, and stops by itself only. See Documentation/dev-tools/kgdb.rst,
and kernel/debug/gdbstub.c for the numbers of threads.
"""

from __future__ import annotations

import contextlib
import re

import gdb
import vmd_monitor

SHADOW = 0xFFFFFFFE
"""Number of the thread that stands for CPU 0, whatever that runs; CPU n has n less: `getthread`."""

_SHADOWS = 1 << 16

ENTRY = "kgdb_breakpoint"
"""Where the kernel stands when it was asked to enter kgdb, by sysrq or by `kgdbwait`."""


def on() -> bool:
    """Whether GDB is connected to kgdb; `set $vmd_kgdb = 1` says so."""
    return bool(gdb.convenience_variable("vmd_kgdb"))


def select_running() -> None:
    """Select the task that entered kgdb.

    The stub's first answer names no thread. GDB takes the first one, the idle task of CPU 0, and
    shows the registers of the task that it has not selected.
    """
    answer = gdb.execute("maint packet qC", to_string=True) or ""
    found = re.search(r'"QC([0-9a-f]+)"', answer)
    number = int(found[1], 16) if found else None
    for thread in gdb.selected_inferior().threads():
        if thread.ptid[1] == number:
            thread.switch()
    # Only now: GDB believes that the stub has the first one selected, and would read the same again.
    gdb.execute("maint flush register-cache", to_string=True)


def stuck_later() -> bool:
    """Whether a software breakpoint that is set now could not be taken out later.

    A kernel that boots has not write-protected its text yet. kgdb writes a breakpoint there as into any
    memory, and takes it out in the same way, which fails from mark_rodata_ro() on: the machine then hits it
    for ever. See kgdb_arch_set_breakpoint() of arch/*/kernel/kgdb.c.
    """
    if not on():
        return False
    try:
        return bool(gdb.parse_and_eval("rodata_enabled && system_state < SYSTEM_RUNNING"))
    except gdb.error:
        return False


def cpus() -> list[gdb.InferiorThread]:
    """Return the stub's threads that stand for CPUs, in the order of CPUs."""
    return [thread for _, thread in sorted(_shadows().items())]


def cpu_of(thread: gdb.InferiorThread) -> int:
    """Return the CPU that a thread stands for; -1 for one that is a task."""
    cpu = SHADOW - thread.ptid[1]
    return cpu if 0 <= cpu < _SHADOWS else -1


def banner() -> str:
    """Return what the kernel says of itself; only one with kdb in it says something."""
    with contextlib.suppress(gdb.error):
        said = vmd_monitor.ask("summary")
        facts = [fact[1] for line in said if (fact := re.match(r"(?:sysname|release|version)\s+(.+)", line))]
        if facts:
            return " ".join(facts)
    return "a kernel that does not say which: `uname -a` on the machine does"


def _shadows() -> dict[int, gdb.InferiorThread]:
    return {cpu_of(each): each for each in gdb.selected_inferior().threads() if cpu_of(each) >= 0}
