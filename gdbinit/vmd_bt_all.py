"""Where every CPU is, and what it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gdb
import vmd_batch
import vmd_guest
import vmd_kernel
import vmd_slide

_UNKNOWN = "task not known"


class BtAll(gdb.Command):
    """Show the backtrace of each CPU, with the task that it runs: vmd-bt-all [OPTIONS OF bt].

    Example: vmd-bt-all 5
    """

    NAME = "vmd-bt-all"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_STACK)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Go through the CPUs."""
        vmd_guest.need_connected()
        known = True
        for text in backtraces(argument):
            print(text)
            known &= _UNKNOWN not in text.splitlines()[0]
        if not known and not vmd_guest.has_vmlinux():
            vmd_batch.say("no vmlinux is loaded, so there are no names: file VMLINUX")
        elif not known and (why := vmd_slide.misplaced()):
            vmd_batch.say(why)


def backtraces(options: str = "") -> Iterator[str]:
    """Go through the CPUs: which it is and what it runs, with its backtrace.

    Args:
        options: Of GDB's `backtrace`.
    """
    with selection_kept():
        for thread in vmd_guest.cpus():
            thread.switch()
            runs = f"CPU {vmd_guest.cpu_of(thread)}: {_runs(vmd_guest.cpu_of(thread))}"
            yield f"{runs}\n{gdb.execute(f'backtrace {options}', to_string=True).rstrip()}"


@contextmanager
def selection_kept() -> Iterator[None]:
    """Leave the selected CPU and frame as they are."""
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
