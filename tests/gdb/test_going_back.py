"""GDB goes back in a replay."""

from __future__ import annotations

import pytest

from tests.gdb.barereplay import END, SNAPSHOTS
from vmdebug.debugger import stop
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import GdbError


def position(gdb: Gdb) -> int:
    return int(gdb.console("python import vmd_history; print(vmd_history.position())"))


@pytest.mark.parametrize("there", [f"{END + 1}", "9M", "-9M", "+1M"])
def test_a_position_outside_of_the_recording_is_refused_with_its_bounds(past: Gdb, there: str) -> None:
    with pytest.raises(GdbError, match=f"no position -?[0-9]+: its positions are 0 to {END}"):
        past.console(f"vmd-goto {there}")
    assert position(past) == END - 1


@pytest.mark.parametrize("there", [END + 1, -1])
def test_the_same_in_the_api(past: Gdb, there: int) -> None:
    with pytest.raises(GdbError, match=f"no position {there}: its positions are 0 to {END}"):
        past.goto(there)
    assert position(past) == END - 1


def test_the_bounds_themselves_are_positions(past: Gdb) -> None:
    past.goto(0)
    assert position(past) == 0
    past.goto(END)
    assert position(past) == END


def test_only_the_users_own_breakpoints_that_are_enabled_stop_it(past: Gdb) -> None:
    past.console("python gdb.Breakpoint('in_registers', internal=True)")
    past.breakpoint("without").disable()
    with pytest.raises(GdbError, match="no breakpoint is set to go back to"):
        past.back()
    mine = past.breakpoint("main")
    where = past.back()
    assert (where.reason, where.breakpoint, where.frame.function) == (stop.BREAKPOINT, mine, "main")


def test_the_condition_of_a_breakpoint_is_kept(past: Gdb) -> None:
    past.breakpoint("step", when="k == 3 && task->pid == 1")
    past.breakpoint("work", when="k > 9")
    for _ in range(2):
        frame = past.back().frame
        assert (frame.function, int(frame.arg("k"))) == ("step", 3)


def test_a_temporary_breakpoint_is_deleted_at_its_hit(past: Gdb) -> None:
    past.breakpoint("deepest", temporary=True)
    assert past.back().frame.function == "deepest"
    with pytest.raises(GdbError, match="no breakpoint is set to go back to"):
        past.back()


def test_an_instruction_is_not_skipped_where_memory_later_has_a_breakpoint_instruction(past: Gdb) -> None:
    past.console("set var *(unsigned char *) main = 0xcc")  # as the kernel fills its freed init memory
    past.breakpoint("main")
    assert past.back().frame.function == "main"
    there = position(past)
    before = past.evaluate("$sp")
    past.stepi()
    assert position(past) == there + 1
    assert int(past.evaluate("$sp")) != int(before)  # its first instruction pushes
    assert past.back().frame.function == "main"
    assert position(past) == there
    past.stepi()
    assert past.cont().reason == stop.SIGNAL
    assert position(past) == END


def test_a_search_takes_one_snapshot_where_it_begins(past: Gdb) -> None:
    past.console("python import vmd_history; vmd_history._FAR = 1_000_000")
    past.breakpoint("main")
    assert past.back().frame.function == "main"
    snapshots = "python print(*[each.position for each in vmd_history.snapshots()])"
    first = set(map(int, past.console(snapshots).split()))
    assert END - 1 - (1 << 21) in first - set(SNAPSHOTS)
    there = position(past)
    assert past.back().reason == "begin"
    assert set(map(int, past.console(snapshots).split())) == {*SNAPSHOTS, there - (1 << 21)}
