"""Traces on a guest without a kernel: what they refuse, and what they cannot collect."""

from __future__ import annotations

import pytest

from vmdebug.deadline import Deadline
from vmdebug.debugger import control, gdb_errors
from vmdebug.debugger.connection import Connection
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import GdbError
from vmdebug.trace.probe import Probe
from vmdebug.trace.trace import Trace

HITS = 5


def some(hits: Trace) -> None:
    deadline = Deadline.after(60)
    while len(hits) < HITS:
        deadline.left("hits")


@pytest.mark.parametrize(
    ("places", "when", "words", "hint"),
    [
        ([Probe("nosuch")], "", 'Function "nosuch" not defined.', gdb_errors.UNKNOWN_PLACE_NOW),
        ([Probe("step", ("nosuch",))], "", 'nosuch at step: No symbol "nosuch"', gdb_errors.IN_SCOPE),
        ([Probe("step", ("k +",))], "", "k [+] at step: A syntax error in expression", ""),
        (
            [Probe("step")],
            "nosuch > 1",
            'the condition nosuch > 1 at step: No symbol "nosuch"',
            gdb_errors.IN_SCOPE,
        ),
        ([Probe("step")], "k >", "the condition k > at step: A syntax error in expression", ""),
        (
            [Probe("step"), Probe("main")],
            "gone > 1",
            'the condition .* No symbol "gone"',
            gdb_errors.IN_SCOPE,
        ),
        (
            [Probe("step", ("k + $foo",))],
            "",
            r"k [+] \$foo at step: there is no \$foo: it is no register, ",
            "set it before the trace: set $foo = 1",
        ),
        (
            [Probe("step"), Probe("main")],
            "$RAX == 1",
            r"the condition \$RAX == 1 at step: there is no \$RAX: ",
            "set it before the trace: set $RAX = 1",
        ),
        ([Probe("step", ("$task->pid",))], "", r"\$task: .* has no struct task_struct in its debug", ""),
        ([Probe("step")], '$comm == "cat"', r"\$comm: .* has no struct task_struct in its debug", ""),
    ],
)
def test_what_is_known_at_no_hit_is_refused(
    gdb: Gdb, places: list[Probe], when: str, words: str, hint: str
) -> None:
    """A condition that never holds would wait silently."""
    with pytest.raises(GdbError, match=f"^a trace: {words}") as raised, gdb.trace(places, when=when):
        pass
    assert raised.value.hint == hint
    assert gdb.stopped
    assert gdb.breakpoints() == ()


def test_a_condition_that_is_meant_for_one_of_several_places(gdb: Gdb) -> None:
    with gdb.trace([Probe("step"), Probe("without")], when="task->pid == 1") as hits:
        some(hits)
    assert {hit.symbol for hit in hits} == {"step"}
    (note,) = hits.notes
    assert note.startswith("without records no hits: no such condition there: No symbol ")


def test_words_that_begin_with_a_dollar(gdb: Gdb) -> None:
    """The trace's own, registers, functions, and what the user has set or sets in an expression."""
    gdb.console("set $mine = 40")
    text = '$_streq("$none", "$none") && \'$\' == 36'
    with gdb.trace("step", args=["$cpu", "$rdi == k", "$mine + 2", text, "$last = k", "$last"]) as hits:
        some(hits)
    assert hits.notes == ()
    for hit in hits:
        assert list(hit.args.values())[:4] == [0, 1, 42, 1]
        assert hit.args["$last"] == hit.args["$last = k"]
    assert gdb.console("output $cpu").strip() == "void"


def test_a_condition_that_is_void_does_not_hold(gdb: Gdb) -> None:
    """To Python a void value is true."""
    with gdb.trace("step", when="(void)0") as none:
        while not none.notes:
            none.take()
    assert len(none) == 0
    assert none.notes[0].endswith("are not recorded: it is void")


def test_a_variable_of_the_user_is_not_replaced(gdb: Gdb) -> None:
    gdb.console("set $cpu = 7")
    gdb.console('set $comm = "mine"')
    with gdb.trace("step", args=["$cpu"], when='$cpu == 7 && $comm == "mine"') as hits:
        some(hits)
    assert {hit.args["$cpu"] for hit in hits} == {7}
    assert gdb.console("output $cpu").strip() == "7"


def test_what_turns_out_to_be_unknown_at_a_hit_is_told(gdb: Gdb) -> None:
    with gdb.trace("step", args=["k", "task->nosuch", "*(int *) -1"]) as hits:
        some(hits)
    assert {hit.args["task->nosuch"] for hit in hits} == {None}
    assert hits.notes == ("task->nosuch at step: There is no member named nosuch.",)
    with gdb.trace("step", when="task->nosuch == 1") as none:
        while not none.notes:
            none.take()
    assert len(none) == 0
    (note,) = none.notes
    assert note.endswith("cannot be evaluated are not recorded: There is no member named nosuch.")


def test_a_function_that_is_inlined_has_no_return_of_its_own(gdb: Gdb) -> None:
    """It would record the return value of the calling function."""
    with gdb.trace([Probe("inlined"), Probe("without", ("k",))], ret=True) as hits:
        some(hits)
    assert {hit.symbol for hit in hits} == {"inlined", "without"}
    assert all(hit.ret == hit.args.get("k") for hit in hits if hit.ret is not None)
    assert {hit.ret for hit in hits if hit.symbol == "inlined"} == {None}
    assert hits.notes == ("inlined is inlined into work: its hits there have no return value",)


def test_hits_without_a_return_value_come_as_they_are_made(gdb: Gdb) -> None:
    with gdb.trace("work", args=["k"], ret=True) as hits:
        some(hits)
        assert [hit.args["k"] for hit in hits][:HITS] == list(range(HITS))


def test_a_guest_whose_interrupts_are_lost_is_stopped_by_a_hit(
    gdb: Gdb, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Connection.execute

    def lossy(self: Connection, command: str, deadline: Deadline) -> object:
        return None if command == "-exec-interrupt" else execute(self, command, deadline)

    monkeypatch.setattr(control, "HALT_AFTER", 0)
    monkeypatch.setattr(Connection, "execute", lossy)
    for _ in range(2):
        with gdb.trace("step", args=["k"]) as hits:
            some(hits)
    work = gdb.breakpoint("work")
    assert gdb.cont().breakpoint == work
