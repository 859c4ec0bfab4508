"""Runs until a function returns, on whichever CPU its task runs then."""

from __future__ import annotations

import gdb
import vmd_batch
import vmd_guest
from vmd_follow import STEP


class Finish(gdb.Command):
    """Run until the selected frame returns, and print its return value: vmd-finish.

    GDB's own `finish` waits on the CPU on which it was started. If the task sleeps and wakes on
    another CPU, `finish` misses it and the guest keeps running. This command follows the task.

    Example: vmd-finish
    """

    NAME = "vmd-finish"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Run until the return."""
        if argument:
            vmd_batch.fail(f"vmd-finish takes no argument, got {argument!r}", vmd_batch.USAGE)
        vmd_guest.need_connected()
        if not STEP.finish(silent=True):
            gdb.execute("finish")
            return
        returned = False
        try:
            gdb.execute("continue")
        finally:
            returned = STEP.end()
        if returned:
            gdb.execute("frame")
            value = STEP.returned()
            if value is not None:
                print(f"Value returned is ${gdb.add_history(value)} = {value.format_string()}")
