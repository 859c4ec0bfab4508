"""The reverse commands at GDB's prompt: in a replay they replace GDB's own of the same name."""

from __future__ import annotations

from collections.abc import Callable

import gdb
import vmd_batch
import vmd_guest
import vmd_history
import vmd_reverse
from vmd_reverse import Arrived

_BEGIN = "This is the begin of the recording; there is nothing before it."


class Reverse(gdb.Command):
    """One reverse command.

    Args:
        name: Its name, that of GDB's own.
        act: Goes back once.
        repeats: Whether it takes a number of repetitions.
    """

    def __init__(self, name: str, text: str, act: Callable[[], Arrived], *, repeats: bool = True) -> None:
        self.__doc__ = text
        super().__init__(name, gdb.COMMAND_RUNNING)
        self.name, self._act, self._repeats = name, act, repeats

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Go back."""
        if argument and not (self._repeats and argument.isdigit()):
            wanted = "takes a number" if self._repeats else "takes no argument"
            vmd_batch.fail(f"{self.name} {wanted}, got {argument!r}", vmd_batch.USAGE)
        vmd_guest.need_connected()
        vmd_history.position()
        arrived = None
        for _ in range(int(argument or 1)):
            arrived = self._act()
            if arrived.reason == vmd_reverse.BEGIN:
                break
        if arrived is not None:
            _show(arrived)


def _show(arrived: Arrived) -> None:
    if arrived.reason == vmd_reverse.BEGIN:
        print(_BEGIN)
    elif arrived.number:
        watch = arrived.reason == "watchpoint-trigger"
        words = "before a write of watchpoint" if watch else "Breakpoint"
        print(f"{words} {arrived.number} at instruction {vmd_history.position()}")
    gdb.execute("frame")


def define() -> None:
    """Define them."""
    for name, text, act, repeats in (
        (
            "reverse-continue",
            "Go back to the last hit of a breakpoint or watchpoint.",
            vmd_reverse.back,
            False,
        ),
        ("reverse-stepi", "Go back by one instruction: reverse-stepi [COUNT].", vmd_reverse.stepi, True),
        ("reverse-next", "Go back by one line, over calls: reverse-next [COUNT].", _over, True),
        ("reverse-step", "Go back by one line, into calls: reverse-step [COUNT].", _into, True),
        ("reverse-finish", "Go back to the call of the selected function.", vmd_reverse.finish, False),
    ):
        Reverse(name, f"{text}\n\nThe guest must be a replay of a recording.", act, repeats=repeats)


def _over() -> Arrived:
    return vmd_reverse.line(into=False)


def _into() -> Arrived:
    return vmd_reverse.line(into=True)
