"""Callbacks, changes and lists of breakpoints, on a guest without a kernel."""

from __future__ import annotations

import pytest

from vmdebug.debugger import gdb_errors, stop
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import Stop
from vmdebug.errors import DeadlineError, GdbError, UsageError

QUICK = 30.0


# Callbacks


def test_a_callback_is_called_at_each_hit_until_it_says_to_stop(gdb: Gdb) -> None:
    seen: list[int] = []

    def look(where: Stop) -> bool:
        seen.append(int(where.frame.arg("k")))
        return len(seen) == 4

    breakpoint_ = gdb.breakpoint("work", callback=look)
    where = gdb.cont(timeout=QUICK)
    assert where.breakpoint is breakpoint_
    assert int(where.frame.arg("k")) == seen[-1]
    assert seen == [0, 1, 2, 3]
    assert breakpoint_.hits == 4
    assert breakpoint_.addresses == (breakpoint_.address,)


def test_a_callback_only_sees_hits_whose_condition_holds(gdb: Gdb) -> None:
    seen: list[int] = []
    gdb.breakpoint("work", when="k % 2 == 1", callback=lambda where: seen.append(int(where.frame.arg("k"))))
    gdb.breakpoint("work", when="k == 6")
    gdb.cont(timeout=QUICK)
    assert seen == [1, 3, 5]


def test_breakpoints_in_one_place_are_all_heard(gdb: Gdb) -> None:
    """MI's record names only the first, whose callback must not lose the stops of the others."""
    seen: list[int] = []
    gdb.breakpoint("work", callback=lambda where: seen.append(int(where.frame.arg("k"))))
    mine = gdb.breakpoint("work", when="k == 2")
    where = gdb.cont(timeout=QUICK)
    assert where.breakpoint is mine
    assert seen == [0, 1, 2]


def test_what_a_callback_raises_comes_out_with_the_guest_stopped(gdb: Gdb) -> None:
    def fail(where: Stop) -> None:
        raise ValueError(where.frame.function)

    with gdb.breakpoint("work", callback=fail), pytest.raises(ValueError, match="work"):
        gdb.cont(timeout=QUICK)
    assert gdb.frame().function == "work"
    gdb.breakpoint("step")
    assert gdb.cont(timeout=QUICK).frame.function == "step"


def test_a_callback_may_set_and_delete_breakpoints_its_own_too(gdb: Gdb) -> None:
    def move(_where: Stop) -> None:
        first.delete()
        gdb.breakpoint("without")

    first = gdb.breakpoint("step", callback=move)
    assert gdb.cont(timeout=QUICK).frame.function == "without"
    assert [each.where for each in gdb.breakpoints()] == ["without"]


def test_a_callback_may_finish_the_function(gdb: Gdb) -> None:
    returned: list[str] = []

    def finish(_where: Stop) -> bool:
        returned.append(gdb.finish(timeout=QUICK).details["return-value"])
        return len(returned) == 3

    gdb.breakpoint("step", callback=finish)
    where = gdb.cont(timeout=QUICK)
    assert returned == ["1", "2", "3"]
    assert where.reason == stop.FINISHED
    assert where.frame.function == "work"


def test_a_callback_is_called_by_whoever_waits(gdb: Gdb) -> None:
    seen: list[int] = []

    def look(where: Stop) -> bool:
        seen.append(int(where.frame.arg("k")))
        return len(seen) == 3

    gdb.breakpoint("work", callback=look)
    gdb.cont(wait=False)
    gdb.wait_stop(timeout=QUICK)
    assert len(seen) == 3


def test_a_deadline_holds_for_all_hits_together(gdb: Gdb) -> None:
    seen: list[str] = []
    gdb.breakpoint("work", callback=lambda where: seen.append(where.frame.function))
    with pytest.raises(DeadlineError):
        gdb.cont(timeout=4)
    assert len(seen) > 1  # each hit was long before that deadline
    gdb.interrupt(timeout=QUICK)  # it runs, or the next hit has stopped it
    assert gdb.state is State.STOPPED


def test_a_step_that_a_callback_interrupts_ends_there(gdb: Gdb) -> None:
    seen: list[str] = []
    gdb.breakpoint("work", temporary=True)
    gdb.cont(timeout=QUICK)
    gdb.breakpoint("step", callback=lambda where: seen.append(where.frame.function))
    where = gdb.next(timeout=QUICK)
    while not seen:
        where = gdb.next(timeout=QUICK)
    assert where.frame.function == "step"


def test_a_watchpoint_calls_back(gdb: Gdb) -> None:
    changes: list[str] = []

    def change(where: Stop) -> bool:
        changes.append(where.details["value"]["new"])
        return len(changes) == 3

    gdb.breakpoint("main", temporary=True)
    gdb.cont(timeout=QUICK)
    gdb.watchpoint("watched", callback=change)
    assert gdb.cont(timeout=QUICK).reason == stop.WATCHPOINT
    assert len(set(changes)) == 3


@pytest.mark.parametrize("later", [False, True])
def test_one_that_passes_over_hits_is_not_among_those_hit(gdb: Gdb, later: bool) -> None:
    seen: list[int] = []
    gdb.breakpoint("work", callback=lambda where: seen.append(int(where.frame.arg("k"))))
    mine = gdb.breakpoint("work", ignore=0 if later else 3)
    if later:
        mine.ignore(3)
    assert gdb.cont(timeout=QUICK).breakpoint is mine
    assert seen == [0, 1, 2, 3]


# Changes


def test_a_breakpoint_that_is_off_stops_nothing(gdb: Gdb) -> None:
    breakpoint_ = gdb.breakpoint("step")
    gdb.breakpoint("without")
    breakpoint_.disable()
    assert not breakpoint_.enabled
    assert gdb.cont(timeout=QUICK).frame.function == "without"
    breakpoint_.enable()
    assert breakpoint_.enabled
    assert gdb.cont(timeout=QUICK).frame.function == "step"


def test_a_condition_can_be_changed(gdb: Gdb) -> None:
    breakpoint_ = gdb.breakpoint("work", when="k == 1")
    gdb.cont(timeout=QUICK)
    breakpoint_.condition = 'k == 5 && $_streq("a b", "a b")'
    assert breakpoint_.condition == 'k == 5 && $_streq("a b", "a b")'
    assert int(gdb.cont(timeout=QUICK).frame.arg("k")) == 5
    with pytest.raises(GdbError, match='the breakpoint at work: No symbol "q"'):
        breakpoint_.condition = "q == 1"
    assert breakpoint_.condition.startswith("k == 5")
    breakpoint_.condition = ""
    assert breakpoint_.condition == ""
    assert int(gdb.cont(timeout=QUICK).frame.arg("k")) == 6


def test_hits_can_be_passed_over_later_too(gdb: Gdb) -> None:
    breakpoint_ = gdb.breakpoint("work")
    assert int(gdb.cont(timeout=QUICK).frame.arg("k")) == 0
    breakpoint_.ignore(3)
    assert int(gdb.cont(timeout=QUICK).frame.arg("k")) == 4


def test_a_change_leaves_a_running_guest_running(gdb: Gdb) -> None:
    breakpoint_ = gdb.breakpoint("step", when="k == 77")
    gdb.cont(wait=False)
    breakpoint_.disable()
    assert gdb.state is State.RUNNING
    breakpoint_.condition = ""
    breakpoint_.enable()
    assert gdb.wait_stop(timeout=QUICK).breakpoint is breakpoint_


# All of them


def test_all_breakpoints_also_those_of_commands(gdb: Gdb) -> None:
    assert gdb.breakpoints() == ()
    mine = gdb.breakpoint("step")
    gdb.console("break work if k == 1")
    watched = gdb.watchpoint("watched")
    found = gdb.breakpoints()
    assert [each.where for each in found] == ["step", "work", "watched"]
    assert found[0] is mine
    assert found[2] is watched
    assert found[1].condition == "k == 1"
    gdb.delete_all()
    assert gdb.breakpoints() == ()
    gdb.breakpoint("without")
    assert gdb.cont(timeout=QUICK).frame.function == "without"


def test_a_kernel_without_panic_cannot_be_watched_for_it(gdb: Gdb) -> None:
    with pytest.raises(GdbError, match='a breakpoint at panic: Function "panic" not defined'):
        gdb.catch_panic()
    assert gdb.breakpoints() == ()


# Breakpoints that would silently never hit, or do nothing


def test_a_cpu_that_the_guest_does_not_have(gdb: Gdb) -> None:
    for cpu in (-1, 2):
        with pytest.raises(UsageError, match=f"at work: the guest has no CPU {cpu}") as raised:
            gdb.breakpoint("work", cpu=cpu)
        assert raised.value.hint == "its CPUs are 0, 1"
    assert gdb.breakpoints() == ()


def test_what_lies_in_no_memory_is_not_watched_by_stepping(gdb: Gdb) -> None:
    for expression in ("$rax", "first.pid + $rax"):
        with pytest.raises(GdbError, match=r"a watchpoint on .*: it is not in memory"):
            gdb.watchpoint(expression)
    assert gdb.breakpoints() == ()


def test_a_watchpoint_that_cannot_be_right(gdb: Gdb) -> None:
    with pytest.raises(GdbError, match=r'^a watchpoint on nosuch: No symbol "nosuch"') as raised:
        gdb.watchpoint("nosuch")
    assert raised.value.hint == gdb_errors.WATCHABLE
    with pytest.raises(UsageError, match="a watchpoint for 'both'"):
        gdb.watchpoint("watched", access="both")  # type: ignore[arg-type] # what this is about


def test_changing_a_breakpoint_that_has_gone(gdb: Gdb) -> None:
    gone = gdb.breakpoint("work", temporary=True)
    gdb.cont(timeout=QUICK)

    def condition() -> None:
        gone.condition = "k == 1"

    for change in (gone.enable, gone.disable, condition, lambda: gone.ignore(1)):
        with pytest.raises(GdbError, match=r"the breakpoint at work(: No breakpoint| has been deleted)"):
            change()


def test_a_frame_that_there_is_not(gdb: Gdb) -> None:
    gdb.breakpoint("step")
    gdb.cont(timeout=QUICK)
    assert gdb.select(frame=1).function == "work"
    with pytest.raises(GdbError, match="there is no frame 99: the outermost is "):
        gdb.select(frame=99)


def test_a_breakpoint_at_what_a_pointer_points_to(gdb: Gdb) -> None:
    gdb.breakpoint("work", temporary=True)
    gdb.cont(timeout=QUICK)
    planted = gdb.breakpoint(gdb.evaluate("first.run"))
    assert planted.address == int(gdb.evaluate("&doubled"))
