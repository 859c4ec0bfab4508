"""C values out of a guest, of every kind, against what the program says they are."""

from __future__ import annotations

import re

import pytest

from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.stop import Stop
from vmdebug.debugger.value import Value
from vmdebug.errors import GdbError

QUICK = 30.0

FIRST = {
    "name": "first",
    "pid": 1,
    "state": "BUSY",
    "may": "READ|EXEC",
    "kind": 5,
    "delta": -3,
    "bits": "WRITE",
    "alive": True,
    "whole": 0x1122334455667788,
    "low": 0x55667788,
    "high": 0x11223344,
    "at": [{"x": 1, "y": -2}, {"x": 3, "y": -4}],
    "load": 0.5,
    "raw": [0, 127, 128, 255],
    "numbers": [1, -1, 300],
    "ready": True,
    "type": 7,
}


@pytest.fixture
def where(gdb: Gdb) -> Stop:
    """The guest's first call of work()."""
    gdb.breakpoint("work", when="k == 4")
    return gdb.cont(timeout=QUICK)


@pytest.fixture
def first(gdb: Gdb, where: Stop) -> Value:
    return gdb.value("first")


def test_a_whole_struct_as_python(gdb: Gdb, first: Value) -> None:
    python = first.to_python()
    assert {name: python[name] for name in FIRST} == FIRST
    assert python["tasks"] == {"next": gdb.value("&second.tasks").int()}
    assert python["run"] == gdb.value("doubled").int()
    assert list(python) == [
        *("name", "pid", "state", "may", "kind", "delta", "bits", "alive", "tasks", "whole", "low", "high"),
        *("at", "run", "note", "load", "raw", "numbers", "ready", "type"),
    ]


def test_a_struct_costs_one_round_trip(gdb: Gdb, where: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []
    ask = gdb._memory._ask

    def counted(command: str) -> object:
        commands.append(command.partition(" ")[0])
        return ask(command)

    monkeypatch.setattr(gdb._memory, "_ask", counted)
    task = where.frame.arg("task")
    assert (task.pid.int(), task.at[1].y.int(), task.name.string()) == (1, -4, "first")
    task.to_python()
    assert commands == ["-vmd-value", "-vmd-element"]


def test_numbers(first: Value) -> None:
    assert first.pid.int() == 1
    assert int(first.delta) == -3
    assert first.kind.int() == 5
    assert hex(first.whole) == "0x1122334455667788"
    assert first.low.int() == 0x55667788
    assert first.raw[3].int() == 255
    assert first.ready
    assert first.alive


def test_enumerators_have_names(first: Value) -> None:
    assert (first.state.enumerator(), first.state.int()) == ("BUSY", 5)
    assert (first.may.enumerator(), first.may.int()) == ("READ|EXEC", 5)
    assert first.bits.enumerator() == "WRITE"
    second = first.tasks.next.container_of("struct task", "tasks")
    assert (second.state.enumerator(), second.state.int()) == ("GONE", -1)


def test_text(gdb: Gdb, first: Value) -> None:
    assert first.name.string() == "first"
    assert first.note.string() == 'a "note" of ä and \\xff'
    assert first.note.string(limit=5) == 'a "no'
    assert gdb.value("message")["text"].string() == "hello"
    assert gdb.value('"literal"').string() == "literal"


def test_pointers_are_followed(first: Value) -> None:
    second = first.tasks.next.container_of("struct task", "tasks")
    assert second.type == "struct task *"
    assert second.tasks.container_of("struct task", "tasks") == second
    assert second.name.string() == "second"
    assert second.deref().pid.int() == 2
    assert second[-1].type == "struct task"
    assert second.tasks.next.int() == 0
    assert not second.tasks.next


def test_arrays(first: Value) -> None:
    assert len(first.at) == 2
    assert [point.x.int() for point in first.at] == [1, 3]
    with pytest.raises(IndexError, match=r"`first\.at` has 2 elements, no \[2\]"):
        _ = first.at[2]


def test_a_flexible_array_has_no_end(gdb: Gdb, where: Stop) -> None:
    message = gdb.value("message")
    assert message.length.int() == 5
    assert "".join(chr(message["text"][i].int()) for i in range(5)) == "hello"
    assert message["text"].to_python() == ""


def test_members_named_as_methods_are_taken_by_index(first: Value) -> None:
    assert first.type == "struct task"
    assert first["type"].int() == 7


def test_casts(gdb: Gdb, first: Value) -> None:
    assert first.pid.cast("unsigned char").type == "unsigned char"
    assert first.delta.cast("unsigned char").int() == 253
    assert gdb.value("&first").cast("struct list *").type == "struct list *"
    with pytest.raises(GdbError, match="nosuch"):
        first.pid.cast("struct nosuch *")


def test_addresses(gdb: Gdb, first: Value) -> None:
    assert first.address == gdb.value("&first").int()
    assert first.pid.address == gdb.value("&first.pid").int()
    assert first.kind.address is None
    assert gdb.value("1 + 1").address is None
    assert gdb.value("step").address == gdb.value("step").int()


def test_a_snapshot_stays_and_a_pointer_is_read_anew(gdb: Gdb, first: Value) -> None:
    pointer = gdb.value("current")
    assert pointer.pid.int() == 1
    gdb.evaluate("first.pid = 42")
    assert (first.pid.int(), pointer.pid.int(), pointer.deref().pid.int()) == (1, 1, 42)


def test_without_smp_there_is_one_copy_of_what_each_cpu_has(gdb: Gdb, where: Stop) -> None:
    one = gdb.per_cpu("first", 0)
    assert (one.address, one.pid.int()) == (gdb.value("&first").int(), 1)
    assert gdb.per_cpu("first.pid", 0).int() == 1
    assert gdb.value("current").per_cpu_ptr(0).address == one.address
    with pytest.raises(GdbError, match="the kernel has CPUs 0 to 0"):
        gdb.per_cpu("first", 1)
    with pytest.raises(GdbError, match="the kernel has CPUs 0 to 0"):
        gdb.value("current").per_cpu_ptr(1)
    with pytest.raises(GdbError, match="not a pointer"):
        one.per_cpu_ptr(0)
    with pytest.raises(GdbError, match="`nosuch` of CPU 0 cannot be read: No symbol"):
        gdb.per_cpu("nosuch", 0)


def test_registers(gdb: Gdb, where: Stop) -> None:
    assert gdb.value("$pc").int() == where.frame.pc
    assert gdb.value("(short)$pc").int() == where.frame.pc & 0xFFFF


def test_a_struct_in_registers(gdb: Gdb, where: Stop) -> None:
    gdb.breakpoint("in_registers")
    pair = gdb.cont(timeout=QUICK).frame.arg("pair")
    assert pair.to_python() == {"first": 4, "second": -4}
    assert pair.second.int() == -4
    assert pair.address is None


def test_what_the_compiler_has_taken_away_says_so(gdb: Gdb, where: Stop) -> None:
    gdb.breakpoint("without")
    gone = gdb.cont(timeout=QUICK).frame.local("gone")
    assert gone.optimized_out
    assert repr(gone) == "<int gone: optimised out>"
    assert gone.to_python() is None
    with pytest.raises(GdbError, match="`gone` has been optimised out by the compiler"):
        gone.int()


def test_what_it_is_not(gdb: Gdb, first: Value) -> None:
    with pytest.raises(GdbError, match="`first` is a struct task, not a number"):
        first.int()
    with pytest.raises(GdbError, match=r"`first\.pid` is a int, not text"):
        first.pid.string()
    with pytest.raises(GdbError, match="not a pointer"):
        first.deref()
    with pytest.raises(GdbError, match="not an enumeration"):
        first.pid.enumerator()
    with pytest.raises(TypeError, match="no elements"):
        _ = first[0]
    with pytest.raises(TypeError, match="no length"):
        len(first)


def test_no_such_member_lists_those_that_there_are(gdb: Gdb, first: Value) -> None:
    for value in (first, gdb.value("current")):
        with pytest.raises(AttributeError, match="has no member nosuch; it has name, pid, state"):
            _ = value.nosuch
        with pytest.raises(KeyError, match="has no member nosuch"):
            _ = value["nosuch"]
    assert not hasattr(first, "nosuch")
    assert "whole" in dir(first)


def test_memory_that_cannot_be_read(gdb: Gdb, where: Stop) -> None:
    nowhere = gdb.value("(char *)0xdead000000000000")
    what = re.escape("what `(char *)0xdead000000000000` points to cannot be read ")
    with pytest.raises(GdbError, match=f"^{what}as text: Cannot access memory"):
        nowhere.string()
    with pytest.raises(GdbError, match=f"^{what}at 0xdead0{{12}}: Cannot access memory"):
        nowhere.deref()


def test_values_compare_with_what_they_are(gdb: Gdb, first: Value) -> None:
    """By identity `task.pid == 1` would be false, in silence."""
    assert first.pid == 1
    assert first.pid != 2
    assert not first.pid == 2  # noqa: SIM201 - it is == that is tested
    assert first.delta < 0 < first.pid <= 1 < first.kind
    assert first.load == 0.5
    assert (first.alive == True, first.ready == 1) == (True, True)  # noqa: E712 - likewise
    assert first.state == 5 == first["state"]
    assert first.state == "BUSY"
    assert first.may == "READ|EXEC"
    assert first.name == "first"
    assert first.note == 'a "note" of ä and \\xff'
    assert first.tasks.next == gdb.value("&second.tasks")
    assert first.pid != "1"
    assert first != 1
    assert first in (first, gdb)
    assert {first.pid, first.ready, 1} == {1}
    assert f"{first.whole:#x} {first.pid}" == "0x1122334455667788 <int first.pid = 1>"
    with pytest.raises(TypeError):
        _ = first < 1


def test_wider_than_a_word(gdb: Gdb, where: Stop) -> None:
    gdb.console("set $xmm0.v2_int64[0] = -2")
    gdb.console("set $xmm0.v2_int64[1] = 1")
    assert gdb.value("$xmm0.uint128") == 2**65 - 2
    assert gdb.value("$xmm0").uint128 == 2**65 - 2


def test_void_and_functions(gdb: Gdb, where: Stop) -> None:
    nothing = gdb.value("(void)0")
    assert nothing.to_python() is None
    with pytest.raises(GdbError, match="is a void, not a number"):
        nothing.int()
    assert gdb.value("step").to_python() == gdb.value("&step").int()


def test_what_is_too_big_says_so(gdb: Gdb, where: Stop) -> None:
    with pytest.raises(GdbError, match="too big to hand over at once"):
        gdb.value("*(char (*)[2000000])0x100000")


def test_it_shows_itself(gdb: Gdb, first: Value) -> None:
    assert repr(first.pid) == "<int first.pid = 1>"
    assert repr(first.state) == "<enum state first.state = 'BUSY'>"
    assert repr(gdb.value("current")) == f"<struct task * current = {first.address:#x}>"


def test_types_of_one_name_are_told_apart(gdb: Gdb, where: Stop) -> None:
    one = gdb.value("first.at[0]")
    two = gdb.value("first.raw")
    assert (one.to_python(), two.to_python()) == ({"x": 1, "y": -2}, [0, 127, 128, 255])
    assert one.type == "struct {...}"
