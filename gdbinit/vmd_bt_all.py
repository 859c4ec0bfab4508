"""Backtraces of all CPUs, with the task that each one runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gdb
import vmd_batch
import vmd_debuginfo
import vmd_guest
import vmd_kernel
import vmd_slide

_UNKNOWN = "task unknown"


class BtAll(gdb.Command):
    """Show each CPU's task and backtrace: vmd-bt-all [BT-OPTIONS].

    Example: vmd-bt-all 5
    """

    NAME = "vmd-bt-all"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_STACK)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Print each CPU's task and backtrace."""
        vmd_guest.need_connected()
        known = True
        for text in backtraces(argument):
            print(text)
            known &= _UNKNOWN not in text.splitlines()[0]
        if not known and not vmd_guest.has_vmlinux():
            vmd_batch.say("no vmlinux is loaded, so there are no symbols; load it: file VMLINUX")
        elif not known and (why := vmd_slide.misplaced()):
            vmd_batch.say(why)
        elif not known and vmd_debuginfo.missing():
            vmd_batch.say(f"tasks are unknown: {vmd_debuginfo.lacking('struct task_struct')}")


def backtraces(options: str = "") -> Iterator[str]:
    """Return, for each CPU, its number, the task that it runs, and its backtrace.

    Args:
        options: Options of GDB's `backtrace`.
    """
    with selection_kept():
        for thread in vmd_guest.cpus():
            thread.switch()
            runs = f"CPU {vmd_guest.cpu_of(thread)}: {_runs(vmd_guest.cpu_of(thread))}"
            yield f"{runs}\n{gdb.execute(f'backtrace {options}', to_string=True).rstrip()}"


@contextmanager
def selection_kept() -> Iterator[None]:
    """Restore the selected CPU and frame after the block."""
    thread = gdb.selected_thread()
    frame = gdb.selected_frame()
    try:
        yield
    finally:
        if thread is not None:
            thread.switch()
        if frame.is_valid():
            frame.select()


def _runs(cpu: int) -> str:
    try:
        task = vmd_kernel.current(cpu)
        return f"pid {int(task['pid'])} ({vmd_kernel.name_of(task)})"
    except gdb.error:
        return _UNKNOWN
