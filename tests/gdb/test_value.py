"""C values of every kind from a guest, compared with those in the program."""

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
    return gdb.evaluate("first")


def test_a_whole_struct_as_python(gdb: Gdb, first: Value) -> None:
    python = first.to_python_()
    assert {name: python[name] for name in FIRST} == FIRST
    assert python["tasks"] == {"next": int(gdb.evaluate("&second.tasks"))}
    assert python["run"] == int(gdb.evaluate("doubled"))
    assert list(python) == [
        *("name", "pid", "state", "may", "kind", "delta", "bits", "alive", "tasks", "whole", "low", "high"),
        *("at", "run", "note", "load", "raw", "numbers", "ready", "type"),
    ]


def test_a_struct_costs_one_round_trip(gdb: Gdb, where: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []
    ask = gdb._inspection._memory._ask

    def counted(command: str, timeout: float) -> object:
        commands.append(command.partition(" ")[0])
        return ask(command, timeout)

    monkeypatch.setattr(gdb._inspection._memory, "_ask", counted)
    task = where.frame.arg("task")
    assert (int(task.pid), int(task.at[1].y), task.name.string_()) == (1, -4, "first")
    task.to_python_()
    assert commands == ["-vmd-variable", "-vmd-element"]


def test_numbers(first: Value) -> None:
    assert int(first.pid) == 1
    assert int(first.delta) == -3
    assert int(first.kind) == 5
    assert hex(first.whole) == "0x1122334455667788"
    assert int(first.low) == 0x55667788
    assert int(first.raw[3]) == 255
    assert first.ready
    assert first.alive


def test_enumerators_have_names(first: Value) -> None:
    assert (first.state.enumerator_(), int(first.state)) == ("BUSY", 5)
    assert (first.may.enumerator_(), int(first.may)) == ("READ|EXEC", 5)
    assert first.bits.enumerator_() == "WRITE"
    second = first.tasks.next.container_of_("struct task", "tasks")
    assert (second.state.enumerator_(), int(second.state)) == ("GONE", -1)


def test_text(gdb: Gdb, first: Value) -> None:
    assert first.name.string_() == "first"
    assert first.note.string_() == 'a "note" of ä and \\xff'
    assert first.note.string_(limit=5) == 'a "no'
    assert gdb.evaluate("message")["text"].string_() == "hello"
    assert gdb.evaluate('"literal"').string_() == "literal"


def test_pointers_are_followed(first: Value) -> None:
    second = first.tasks.next.container_of_("struct task", "tasks")
    assert second.type_ == "struct task *"
    assert second.tasks.container_of_("struct task", "tasks") == second
    assert second.name.string_() == "second"
    assert int(second.deref_().pid) == 2
    assert second[-1].type_ == "struct task"
    assert int(second.tasks.next) == 0
    assert not second.tasks.next


def test_arrays(first: Value) -> None:
    assert len(first.at) == 2
    assert [int(point.x) for point in first.at] == [1, 3]
    with pytest.raises(IndexError, match=r"`first\.at` has 2 elements; there is no \[2\]"):
        _ = first.at[2]


def test_a_flexible_array_has_no_end(gdb: Gdb, where: Stop) -> None:
    message = gdb.evaluate("message")
    assert int(message.length) == 5
    assert "".join(chr(int(message["text"][i])) for i in range(5)) == "hello"
    assert message["text"].to_python_() == ""


def test_a_member_is_read_whatever_its_name(gdb: Gdb, where: Stop) -> None:
    """`struct device` and `struct net_device` have a `type`; vmdebug once used each of the other names."""
    dev, other = gdb.evaluate("eth"), gdb.evaluate("&lo")
    assert dev.type_ == "struct device *"
    assert dev.type == other.type == gdb.evaluate("&ethernet")
    assert dev.type.type_ == "const struct device_type *"
    assert dev.type.name == "ethernet"
    assert dev["type"] == dev.type
    assert dev.deref_().type == other.deref_().type
    assert dev.type != gdb.evaluate("lo.parent").type
    names = [field.name for field in Value.__dict__["_plain_"].fget(dev.deref_()).fields]
    assert len(names) == 20
    for number, name in enumerate(names[2:]):
        assert getattr(dev, name) == dev[name] == number, name


def test_no_word_of_ours_can_hide_a_member() -> None:
    ours = set(vars(Value)) | set(Value.__slots__)
    assert {name for name in ours if not name.endswith("_")} == set()


def test_a_value_is_not_hashable(first: Value) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(first.pid)
    with pytest.raises(TypeError, match="unhashable"):
        _ = {first.name: 1}


def test_casts(gdb: Gdb, first: Value) -> None:
    assert first.pid.cast_("unsigned char").type_ == "unsigned char"
    assert int(first.delta.cast_("unsigned char")) == 253
    assert gdb.evaluate("&first").cast_("struct list *").type_ == "struct list *"
    with pytest.raises(GdbError, match="nosuch"):
        first.pid.cast_("struct nosuch *")


def test_addresses(gdb: Gdb, first: Value) -> None:
    assert first.address_ == int(gdb.evaluate("&first"))
    assert first.pid.address_ == int(gdb.evaluate("&first.pid"))
    assert first.kind.address_ is None
    assert gdb.evaluate("1 + 1").address_ is None
    assert gdb.evaluate("step").address_ == int(gdb.evaluate("step"))


def test_a_snapshot_stays_and_a_pointer_is_read_anew(gdb: Gdb, first: Value) -> None:
    pointer = gdb.evaluate("current")
    assert int(pointer.pid) == 1
    gdb.evaluate("first.pid = 42")
    assert (int(first.pid), int(pointer.pid), int(pointer.deref_().pid)) == (1, 1, 42)


def test_without_smp_there_is_one_copy_of_what_each_cpu_has(gdb: Gdb, where: Stop) -> None:
    one = gdb.per_cpu("first", 0)
    assert (one.address_, int(one.pid)) == (int(gdb.evaluate("&first")), 1)
    assert int(gdb.per_cpu("first.pid", 0)) == 1
    assert gdb.evaluate("current").per_cpu_ptr_(0).address_ == one.address_
    with pytest.raises(GdbError, match="the kernel has CPUs 0 to 0"):
        gdb.per_cpu("first", 1)
    with pytest.raises(GdbError, match="the kernel has CPUs 0 to 0"):
        gdb.evaluate("current").per_cpu_ptr_(1)
    with pytest.raises(GdbError, match="not a pointer"):
        one.per_cpu_ptr_(0)
    with pytest.raises(GdbError, match="`nosuch` of CPU 0 cannot be read: No symbol"):
        gdb.per_cpu("nosuch", 0)


def test_registers(gdb: Gdb, where: Stop) -> None:
    assert int(gdb.evaluate("$pc")) == where.frame.pc
    assert int(gdb.evaluate("(short)$pc")) == where.frame.pc & 0xFFFF


def test_a_struct_in_registers(gdb: Gdb, where: Stop) -> None:
    gdb.breakpoint("in_registers")
    pair = gdb.cont(timeout=QUICK).frame.arg("pair")
    assert pair.to_python_() == {"first": 4, "second": -4}
    assert int(pair.second) == -4
    assert pair.address_ is None


def test_what_the_compiler_has_taken_away_says_so(gdb: Gdb, where: Stop) -> None:
    gdb.breakpoint("without")
    gone = gdb.cont(timeout=QUICK).frame.local("gone")
    assert gone.optimized_out_
    assert repr(gone) == "<int gone: optimised out>"
    assert gone.to_python_() is None
    with pytest.raises(GdbError, match="the compiler has optimised out `gone`"):
        int(gone)


def test_what_it_is_not(gdb: Gdb, first: Value) -> None:
    with pytest.raises(GdbError, match="`first`, of type struct task, is not an integer or address"):
        int(first)
    with pytest.raises(GdbError, match=r"`first\.pid`, of type int, is not text"):
        first.pid.string_()
    with pytest.raises(GdbError, match="not a pointer"):
        first.deref_()
    with pytest.raises(GdbError, match="not an enumeration"):
        first.pid.enumerator_()
    with pytest.raises(TypeError, match="no elements"):
        _ = first[0]
    with pytest.raises(TypeError, match="no length"):
        len(first)


def test_no_such_member_lists_those_that_there_are(gdb: Gdb, first: Value) -> None:
    for value in (first, gdb.evaluate("current")):
        with pytest.raises(AttributeError, match="has no member nosuch; its members are name, pid, state"):
            _ = value.nosuch
        with pytest.raises(KeyError, match="has no member nosuch"):
            _ = value["nosuch"]
    assert not hasattr(first, "nosuch")
    assert "whole" in dir(first)


def test_memory_that_cannot_be_read(gdb: Gdb, where: Stop) -> None:
    nowhere = gdb.evaluate("(char *)0xdead000000000000")
    what = re.escape("what `(char *)0xdead000000000000` points to cannot be read ")
    with pytest.raises(GdbError, match=f"^{what}as text: Cannot access memory"):
        nowhere.string_()
    with pytest.raises(GdbError, match=f"^{what}at 0xdead0{{12}}: Cannot access memory"):
        nowhere.deref_()


def test_values_compare_with_what_they_are(gdb: Gdb, first: Value) -> None:
    """Compared by identity, `task.pid == 1` would silently be false."""
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
    assert first.tasks.next == gdb.evaluate("&second.tasks")
    assert first.pid != "1"
    assert first != 1
    assert first in (first, gdb)
    assert first.alive
    assert not gdb.evaluate("second.load")
    assert (float(first.load), float(first.pid)) == (0.5, 1.0)
    assert f"{first.whole:#x} {first.pid}" == "0x1122334455667788 <int first.pid = 1>"
    with pytest.raises(TypeError):
        _ = first < 1


def test_wider_than_a_word(gdb: Gdb, where: Stop) -> None:
    gdb.console("set $xmm0.v2_int64[0] = -2")
    gdb.console("set $xmm0.v2_int64[1] = 1")
    assert gdb.evaluate("$xmm0.uint128") == 2**65 - 2
    assert gdb.evaluate("$xmm0").uint128 == 2**65 - 2


def test_void_and_functions(gdb: Gdb, where: Stop) -> None:
    nothing = gdb.evaluate("(void)0")
    assert nothing.to_python_() is None
    with pytest.raises(GdbError, match="of type void, is not an integer or address"):
        int(nothing)
    assert gdb.evaluate("step").to_python_() == int(gdb.evaluate("&step"))


def test_what_is_too_big_says_so(gdb: Gdb, where: Stop) -> None:
    with pytest.raises(GdbError, match="too large to read at once"):
        gdb.evaluate("*(char (*)[2000000])0x100000")


def test_it_shows_itself(gdb: Gdb, first: Value) -> None:
    assert repr(first.pid) == "<int first.pid = 1>"
    assert repr(first.state) == "<enum state first.state = 'BUSY'>"
    assert repr(gdb.evaluate("current")) == f"<struct task * current = {first.address_:#x}>"


def test_types_of_one_name_are_told_apart(gdb: Gdb, where: Stop) -> None:
    one = gdb.evaluate("first.at[0]")
    two = gdb.evaluate("first.raw")
    assert (one.to_python_(), two.to_python_()) == ({"x": 1, "y": -2}, [0, 127, 128, 255])
    assert one.type_ == "struct {...}"
