"""Steps to the next source line, on whichever CPU the task runs then."""

from __future__ import annotations

import gdb
import vmd_batch
import vmd_guest
from vmd_follow import STEP


class Next(gdb.Command):
    """Step to the next source line, over calls: vmd-next [COUNT].

    GDB's own `next` waits on the CPU on which it was started. If the task sleeps in a call and
    returns on another CPU, `next` misses it and the guest keeps running. This command follows the
    task.

    Example: vmd-next 3
    """

    NAME = "vmd-next"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Step."""
        if argument and not argument.isdigit():
            vmd_batch.fail(f"vmd-next takes a number of steps, not {argument!r}", vmd_batch.USAGE)
        vmd_guest.need_connected()
        for _ in range(int(argument or 1)):
            _step()


def _step() -> None:
    followed = True
    while followed:
        STEP.next(silent=True)
        try:
            gdb.execute("next")
        finally:
            followed = STEP.end()
