"""The commands that ask a replay about its past."""

from __future__ import annotations

import re
from collections.abc import Callable

import gdb
import vmd_history
import vmd_writes

_POSITION = re.compile(r"(\d+)([kKmM]?)")
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000}


class LastWrite(gdb.Command):
    """Go back to the last write of an expression: vmd-last-write EXPRESSION.

    Prints the function and line that wrote it, the old and the new value, and the backtrace.
    The guest is then before that instruction, so that registers and variables show where the
    value comes from. Only writes that change the value are found. If there was none, the guest
    does not move.

    Example: vmd-last-write panic_on_oops
    """

    NAME = "vmd-last-write"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Search, and print what was found."""
        vmd_writes.need_replay()
        if not argument:
            vmd_writes.fail_usage(self.NAME, "vmd-last-write EXPRESSION")
        origin = vmd_history.position()
        found = vmd_writes.last_write(argument)
        if found is None:
            raise gdb.GdbError(vmd_writes.never(f"no write changed {argument}"))
        print(f"{argument} at {found}")
        gdb.execute(f"backtrace {vmd_writes.FRAMES}")
        print(f"the guest is before that write; it was at instruction {origin}")


class AllWrites(gdb.Command):
    """List the writes that changed an expression's value: vmd-all-writes EXPRESSION.

    The guest stays where it is.

    Example: vmd-all-writes panic_on_oops
    """

    NAME = "vmd-all-writes"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Search, and print what was found."""
        vmd_writes.need_replay()
        if not argument:
            vmd_writes.fail_usage(self.NAME, "vmd-all-writes EXPRESSION")
        found = vmd_writes.all_writes(argument)
        for each in found:
            print(each)
        if not found:
            print(vmd_writes.never(f"no write changed {argument}"))


class LastCall(gdb.Command):
    """Go back to the last call of a function: vmd-last-call FUNCTION [if CONDITION].

    Example: vmd-last-call do_exit if code != 0
    """

    NAME = "vmd-last-call"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING, gdb.COMPLETE_LOCATION)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Go there."""
        _go(self.NAME, argument, vmd_writes.last_call)


class FirstCall(gdb.Command):
    """Go back to the first call of a function: vmd-first-call FUNCTION [if CONDITION].

    Example: vmd-first-call vfs_write if count > 100
    """

    NAME = "vmd-first-call"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING, gdb.COMPLETE_LOCATION)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Go there."""
        _go(self.NAME, argument, vmd_writes.first_call)


class Diff(gdb.Command):
    """Compare an expression at two positions: vmd-diff POSITION POSITION EXPRESSION.

    A position is a number of instructions; 3M is 3000000. Of a structure, the members that
    differ are printed. The guest stays where it is.

    Example: vmd-diff 200M 250M *init_task.signal
    """

    NAME = "vmd-diff"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Compare."""
        vmd_writes.need_replay()
        words = argument.split(maxsplit=2)
        places = [_POSITION.fullmatch(word) for word in words[:2]]
        if len(words) != 3 or not all(places):  # noqa: PLR2004 - two positions and an expression
            vmd_writes.fail_usage(self.NAME, "vmd-diff POSITION POSITION EXPRESSION")
        first, second = (int(place[1]) * _SCALE[place[2].lower()] for place in places if place)
        rows = vmd_writes.differences(first, second, words[2])
        for part, before, after in rows:
            print(f"{part}: {before} -> {after}")
        if not rows:
            print(f"{words[2]} is the same at both positions")


def _go(name: str, argument: str, act: Callable[[str, str], bool]) -> None:
    vmd_writes.need_replay()
    function, _, condition = argument.partition(" if ")
    if not function.strip():
        vmd_writes.fail_usage(name, f"{name} FUNCTION [if CONDITION]")
    if not act(function.strip(), condition.strip()):
        raise gdb.GdbError(vmd_writes.never(f"{argument} was not called"))
    gdb.execute("frame")
