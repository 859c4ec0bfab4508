"""The exact MI commands for breakpoints, and recorded answers of GDB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vmdebug.debugger import breakpoint as mi_breakpoint
from vmdebug.debugger import breakpoints, gdb_errors, mi, stop
from vmdebug.debugger.breakpoint import Breakpoint, Catch
from vmdebug.debugger.stop import Thread
from vmdebug.errors import GdbError


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ({}, '-break-insert -- "start_kernel"'),
        ({"temporary": True}, '-break-insert -t -- "start_kernel"'),
        ({"hardware": True}, '-break-insert -h -- "start_kernel"'),
        ({"pending": True}, '-break-insert -f -- "start_kernel"'),
        ({"when": 'a == "b c"'}, r'-break-insert -c "a == \"b c\"" -- "start_kernel"'),
        ({"ignore": 3}, '-break-insert -i 3 -- "start_kernel"'),
        ({"thread": 2}, '-break-insert -p 2 -- "start_kernel"'),
        (
            {"temporary": True, "hardware": True, "when": "x", "ignore": 1, "thread": 1, "pending": True},
            '-break-insert -t -h -f -c "x" -i 1 -p 1 -- "start_kernel"',
        ),
    ],
)
def test_a_breakpoint(options: dict[str, Any], command: str) -> None:
    assert mi_breakpoint.insert("start_kernel", **options) == command


def test_the_same_breakpoint_in_a_debug_register() -> None:
    command = mi_breakpoint.insert("sched_clock", when="-break-insert", temporary=True)
    wanted = '-break-insert -h -t -c "-break-insert" -- "sched_clock"'
    assert mi_breakpoint.in_hardware(command) == wanted


@pytest.mark.parametrize(
    ("access", "command"),
    [
        ("write", '-break-watch "jiffies"'),
        ("read", '-break-watch -r "jiffies"'),
        ("access", '-break-watch -a "jiffies"'),
    ],
)
def test_a_watchpoint(access: str, command: str) -> None:
    assert mi_breakpoint.watch("jiffies", access=access) == command


def test_a_place_is_a_word_or_an_address() -> None:
    assert mi_breakpoint.location("init/main.c:914") == "init/main.c:914"
    assert mi_breakpoint.location(0xFFFFFFFF81000000) == "*0xffffffff81000000"


class Owner:
    """A fake GDB for breakpoints."""

    def __init__(self) -> None:
        self.deleted: list[int] = []
        self.commands: list[str] = []

    def info(self, number: int) -> Mapping[str, Any]:
        return {"number": str(number), "times": "3", "enabled": "y", "cond": "a == 1"}

    def change(self, command: str, where: str, timeout: float) -> None:
        self.commands.append(f"{command} # {where}, {timeout:g} s")

    def delete(self, breakpoint_: Breakpoint, /, timeout: float) -> None:
        self.deleted.append(breakpoint_.number)


def payload(line: str) -> Mapping[str, Any]:
    record = mi.read(line.encode())
    assert record is not None
    return record.payload()


@pytest.mark.parametrize(
    ("answer", "number", "address", "temporary"),
    [
        ('1^done,bkpt={number="4",disp="keep",addr="0xffffffff82e0d7b7"}', 4, 0xFFFFFFFF82E0D7B7, False),
        ('1^done,bkpt={number="5",type="breakpoint",disp="del",addr="0x10",times="0"}', 5, 0x10, True),
        ('1^done,bkpt={number="6",type="breakpoint",disp="keep",addr="<PENDING>",pending="x"}', 6, 0, False),
        (
            (
                '1^done,bkpt={number="7",type="breakpoint",disp="keep",addr="<MULTIPLE>",times="0",'
                'locations=[{number="7.1",addr="0x10"},{number="7.2",addr="0x20"}]}'
            ),
            7,
            0,
            False,
        ),
        ('1^done,wpt={number="8",exp="jiffies"}', 8, 0, False),
        ('1^done,hw-rwpt={number="9",exp="jiffies"}', 9, 0, False),
    ],
)
def test_what_gdb_made_of_it(answer: str, number: int, address: int, temporary: bool) -> None:
    made = mi_breakpoint.made(payload(answer), "there", Owner())
    assert (made.number, made.where, made.address, made.temporary) == (number, "there", address, temporary)


def test_a_breakpoint_counts_and_goes_at_the_end_of_its_block() -> None:
    owner = Owner()
    with Breakpoint(4, "there", owner=owner) as breakpoint_:
        assert breakpoint_.hits == 3
        assert owner.deleted == []
    assert owner.deleted == [4]


@pytest.mark.parametrize(
    ("described", "addresses"),
    [
        ({"addr": "0x10"}, (0x10,)),
        ({"addr": "<PENDING>"}, ()),
        ({"addr": "<MULTIPLE>", "locations": [{"addr": "0x10"}, {"addr": "0x20"}]}, (0x10, 0x20)),
    ],
)
def test_a_breakpoint_has_all_its_addresses(
    described: Mapping[str, Any], addresses: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Owner, "info", lambda _, number: {"number": str(number), **described})
    assert Breakpoint(4, "there", owner=Owner()).addresses == addresses


def test_changes() -> None:
    owner = Owner()
    breakpoint_ = Breakpoint(4, "there", owner=owner)
    assert (breakpoint_.enabled, breakpoint_.condition) == (True, "a == 1")
    breakpoint_.disable()
    breakpoint_.enable(timeout=2)
    breakpoint_.condition = 'a == "b"'
    breakpoint_.condition = ""
    breakpoint_.ignore(3)
    assert owner.commands == [
        "-break-disable 4 # there, 30 s",
        "-break-enable 4 # there, 2 s",
        r'-break-condition 4 "a == \"b\"" # there, 30 s',
        "-break-condition 4 # there, 30 s",
        "-break-after 4 3 # there, 30 s",
    ]


def test_a_catch_goes_as_one() -> None:
    owner = Owner()
    with Catch((Breakpoint(4, "panic", owner=owner), Breakpoint(5, "oops_enter", owner=owner))):
        assert owner.deleted == []
    assert owner.deleted == [4, 5]


@pytest.mark.parametrize(
    ("row", "where", "address"),
    [
        ({"number": "2", "original-location": "work", "addr": "0x10", "disp": "keep"}, "work", 0x10),
        ({"number": "3", "what": "jiffies", "type": "hw watchpoint", "disp": "keep"}, "jiffies", 0),
        ({"number": "4", "type": "catchpoint", "disp": "keep"}, "catchpoint", 0),
    ],
)
def test_one_that_a_command_has_set(row: Mapping[str, Any], where: str, address: int) -> None:
    found = mi_breakpoint.listed(row, Owner())
    assert (found.number, found.where, found.address) == (int(row["number"]), where, address)


@pytest.mark.parametrize(
    ("oops", "warn", "reasons"),
    [
        (False, False, ["panic"]),
        (True, False, ["panic", "oops"]),
        (True, True, ["panic", "oops", "warning"]),
    ],
)
def test_what_a_panic_catch_takes_in(oops: bool, warn: bool, reasons: list[str]) -> None:
    found = list(breakpoints.panics(oops=oops, warn=warn))
    assert [reason for reason, _ in found] == reasons
    assert found[0][1] == ("vpanic", "panic")


# Refusals


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            (
                "Warning:\nCannot insert hardware breakpoint 5.\nCould not insert hardware breakpoints:\n"
                "You may have requested too many hardware breakpoints/watchpoints."
            ),
            "here: no hardware breakpoint or watchpoint is left",
            "CPU's debug registers",
        ),
        (
            "Hardware breakpoints used exceeds limit.",
            "here: no hardware breakpoint or watchpoint is left",
            "CPU's debug registers",
        ),
        (
            "Warning:\nCannot insert breakpoint 1.\nCannot access memory at address 0xffffffff82e0d7b7",
            "here: the guest has not mapped the memory yet that a breakpoint is written to",
            "hardware=True",
        ),
        ('Function "x" not defined.', 'here: Function "x" not defined.', "pending=True"),
        ("A syntax error in expression, near `'.", "here: A syntax error in expression, near `'.", ""),
    ],
)
def test_what_a_refusal_means(words: str, message: str, hint: str) -> None:
    error = gdb_errors.breakpoint_error(GdbError("GDB refused it", command="-x", words=words), "here")
    assert error.message == message
    assert hint in error.hint
    assert (error.command, error.words) == ("-x", words)


@pytest.mark.parametrize(
    ("when", "unknown", "hint"),
    [
        ("count > x", gdb_errors.UNKNOWN_PLACE, gdb_errors.IN_SCOPE),
        ("count > xx", gdb_errors.UNKNOWN_PLACE, gdb_errors.UNKNOWN_PLACE),
        ("", gdb_errors.WATCHABLE, gdb_errors.WATCHABLE),
    ],
)
def test_what_to_do_about_a_name_depends_on_where_it_stands(when: str, unknown: str, hint: str) -> None:
    error = GdbError("GDB refused it", command="-x", words='No symbol "x" in current context.')
    assert gdb_errors.breakpoint_error(error, "here", when=when, unknown=unknown).hint == hint


def test_the_end_of_gdb_is_no_refusal() -> None:
    ended = GdbError("GDB has ended")
    assert gdb_errors.breakpoint_error(ended, "here") is ended
    assert gdb_errors.renamed(ended, "here") is ended


# Stops


@pytest.mark.parametrize(
    ("line", "reason", "number"),
    [
        ('*stopped,frame={addr="0xfff0"},thread-id="1"', stop.ATTACHED, None),
        ('*stopped,reason="breakpoint-hit",disp="keep",bkptno="3"', stop.BREAKPOINT, 3),
        ('*stopped,reason="watchpoint-trigger",wpt={number="4"},value={old="1",new="2"}', stop.WATCHPOINT, 4),
        (
            '*stopped,reason="read-watchpoint-trigger",hw-rwpt={number="5"},value={value="1"}',
            stop.WATCHPOINT,
            5,
        ),
        (
            '*stopped,reason="access-watchpoint-trigger",hw-awpt={number="6"},value={new="1"}',
            stop.WATCHPOINT,
            6,
        ),
        ('*stopped,reason="watchpoint-scope",wpnum="4"', stop.WATCHPOINT_SCOPE, 4),
        ('*stopped,reason="end-stepping-range"', stop.STEPPED, None),
        ('*stopped,reason="function-finished",gdb-result-var="$1",return-value="7"', stop.FINISHED, None),
        ('*stopped,reason="location-reached"', stop.REACHED, None),
        ('*stopped,reason="signal-received",signal-name="SIGINT"', stop.SIGNAL, None),
        ('*stopped,reason="no-history"', "no-history", None),
    ],
)
def test_why_it_stopped(line: str, reason: str, number: int | None) -> None:
    assert (stop.reason(payload(line)), stop.hit(payload(line))) == (reason, number)


def test_a_frame_with_symbols_and_one_without() -> None:
    known = payload(
        '*x,frame={level="1",addr="0xffffffff82e0d7b7",func="start_kernel",args=[],file="init/main.c",'
        'fullname="/src/init/main.c",line="914",arch="i386:x86-64"}'
    )["frame"]
    frame = stop.frame(known, Thread(1))
    assert (frame.level, frame.function, frame.file, frame.line, frame.pc) == (
        1,
        "start_kernel",
        "/src/init/main.c",
        914,
        0xFFFFFFFF82E0D7B7,
    )
    assert str(frame) == "start_kernel at /src/init/main.c:914"
    unknown = stop.frame(payload('*x,frame={addr="0xfff0",func="??",args=[]}')["frame"], Thread(1))
    assert (unknown.function, unknown.file, unknown.line, str(unknown)) == ("", "", 0, "0xfff0")
    assert stop.frame({"addr": "<unavailable>"}, Thread(1)).pc == 0


def test_the_cpus() -> None:
    answer = payload(
        '4^done,threads=[{id="1",target-id="Thread 1.1",details="CPU#0 [running]",state="stopped"},'
        '{id="2",target-id="Thread 1.2",name="CPU#1",state="stopped"},{id="3",target-id="Thread 1.3"}]'
    )
    found = [(thread.id, thread.cpu, thread.name) for thread in stop.threads(answer)]
    assert found == [(1, 0, "CPU#0 [running]"), (2, 1, "CPU#1"), (3, 2, "Thread 1.3")]
