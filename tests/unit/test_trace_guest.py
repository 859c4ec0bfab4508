"""What the guest's own collector asks of tracefs, and what it makes of the records."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit import test_trace_expressions as expressions
from tests.unit.test_trace_expressions import vmlinux as vmlinux  # noqa: PLC0414 - a fixture
from vmdebug import arch
from vmdebug.errors import UsageError, VmError
from vmdebug.trace import probe
from vmdebug.trace.expressions.compiled import compiled
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.guest import events, formats, pages, records
from vmdebug.trace.guest.events import Event
from vmdebug.trace.guest.fetches import Field, Record, UnreadableError
from vmdebug.trace.guest.hits import Hits
from vmdebug.trace.guest.tasks import Tasks
from vmdebug.trace.hit import Argument, Call, Hit, Task
from vmdebug.trace.probe import Probe, Wanted

X86_64 = arch.by_name("x86_64")
STALE = 0x5A
"""What a field has that could not be fetched: old bytes of the ring buffer."""


@pytest.fixture(autouse=True)
def _cache(vmlinux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(vmlinux.parent / "cache"))


def event_of(vmlinux: Path, wanted: Wanted) -> Event:
    (found, *_) = events.kprobes(compiled(wanted, vmlinux, X86_64, 0), wanted, X86_64, 0)
    return found


def defined(event: Event) -> list[Field]:
    """Return the fetch arguments of a definition."""
    words = [each.partition("=")[2] for each in event.definition.split()[2:]]
    return [Field(*each.rsplit(":", 1)) if ":" in each else Field(each, "string") for each in words]


def fetched(vmlinux: Path, fields: Sequence[Field]) -> Record:
    """Return the record that the kernel would make; CPU 3, pid 0."""
    memory = expressions.memory(vmlinux)
    return [3, 0, *(_fetch(each, memory) for each in fields)]


def _fetch(field: Field, memory: dict[int, bytes]) -> Any:
    try:
        found = _number(field.text, field.type, memory)
    except LookupError:
        return b"" if field.type == "string" else STALE if "[" not in field.type else bytes([STALE]) * 8
    return found


def _number(text: str, kind: str, memory: dict[int, bytes]) -> Any:
    size, signed = int(re.findall(r"\d+", kind)[0]) // 8 if kind != "string" else 0, kind.startswith("s")
    register = {
        short: long for long, short in zip(X86_64.dwarf_registers, X86_64.fetch_registers, strict=True)
    }
    if text.startswith("%"):
        value = expressions.REGISTERS[register[text[1:]]] & (1 << 8 * size) - 1
        return expressions.signed(value, 8 * size) if signed else value
    if text.startswith("@"):
        address = int(text[1:], 16)
    else:
        match = re.fullmatch(r"([-+]\d+)\((.*)\)", text)
        assert match, text
        address = _number(match[2], "u64", memory) + int(match[1])
    if kind == "string":
        return expressions.read(memory, address, 8).partition(b"\0")[0] + b"\0"
    if "[" in kind:
        return expressions.read(memory, address, size * int(re.findall(r"\d+", kind)[1]))
    return int.from_bytes(expressions.read(memory, address, size), "little", signed=signed)


def value_of(event: Event, record: Record) -> Argument:
    ((_, value),) = event.arguments
    if isinstance(value, int):
        return record[value]  # type: ignore[no-any-return]
    try:
        return value(record)
    except UnreadableError:
        return None


COMPUTED = {"it->numbers[count - 5]": "tracefs cannot compute the address that it reads"}
"""The expressions that tracefs cannot fetch, and why."""

VALUES = next(each for each in expressions.test_values.pytestmark if each.name == "parametrize").args[1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values_are_those_of_the_plugin(vmlinux: Path, text: str, value: object) -> None:
    wanted = Wanted((Probe("traced", (text,)),))
    if text in COMPUTED:
        with pytest.raises(NotCompiledError, match=COMPUTED[text]):
            event_of(vmlinux, wanted)
        return
    event = event_of(vmlinux, wanted)
    found = value_of(event, fetched(vmlinux, defined(event)))
    if isinstance(value, bytes):
        value = 2.5 if "real" in text else value.partition(b"\0")[0].decode()
    assert found == value


@pytest.mark.parametrize(
    ("text", "fetches"),
    [
        ("count", ["%si:u32"]),
        ("it", ["%di:u64"]),
        ("small", ["%dx:s8"]),
        ("it->flags", ["+24(%di):u64", "%di:u64"]),
        ("it->next->flags", ["+24(+0(%di)):u64", "%di:u64", "+0(%di):u64"]),
        ("it->next->inner.deep", ["+36(+0(%di)):s16", "%di:u64", "+0(%di):u64"]),
        ("it->name", ["+8(%di):u64", "%di:u64", "+0(+8(%di)):string", "+0(+8(%di)):u8"]),
        ("it->text", ["+56(%di):u64[1]", "%di:u64"]),
        ("$cpu", []),
        ("sizeof(struct item)", []),
    ],
)
def test_fetch_arguments(vmlinux: Path, text: str, fetches: list[str]) -> None:
    event = event_of(vmlinux, Wanted((Probe("traced", (text,)),)))
    assert [each.definition for each in defined(event)] == fetches


@pytest.mark.parametrize(
    ("when", "text", "exact"),
    [
        ("count > 4", "a0 > 4", True),
        ("small < -1", "a0 < -1", True),
        ("count == 7 && big != 3", "(a0 == 7 && a1 != 3)", True),
        ("count == 7 || !flag", "(a0 == 7 || a1 == 0)", True),
        ("!(count == 7 && flag)", "(a0 != 7 || a1 == 0)", True),
        ("count & 0x10", "a0 & 16", True),
        ("$cpu == 1", "CPU == 1", True),
        ("it->flags == 5", f"(a1 < 4096 || a1 >= {2**64 - 4096} || a0 == 5)", False),
        ("small < count", "", True),
        ('$_streq(it->name, "x")', "", False),
    ],
)
def test_conditions_as_filters(vmlinux: Path, when: str, text: str, exact: bool) -> None:
    event = event_of(vmlinux, Wanted((Probe("traced"),), when=when))
    assert (event.filter, event.exact) == (text, exact)
    assert event.condition is not None


def test_conditions_are_evaluated_after_the_hit(vmlinux: Path) -> None:
    for when, holds in (
        ("it->next->flags == 5", 1),
        ('$_streq(it->name, "a nam")', 0),
        ("big / flag < 0", 1),
    ):
        event = event_of(vmlinux, Wanted((Probe("traced"),), when=when))
        assert event.condition is not None
        assert event.condition(fetched(vmlinux, defined(event))) == holds
    for when in ("it->next->next->flags", "count / (flag - 1)"):
        event = event_of(vmlinux, Wanted((Probe("traced"),), when=when))
        assert event.condition is not None
        with pytest.raises(UnreadableError):
            event.condition(fetched(vmlinux, defined(event)))


def test_returns_have_an_event_of_their_own(vmlinux: Path) -> None:
    wanted = Wanted((Probe("colored"),), ret=True)
    trace = compiled(wanted, vmlinux, X86_64, 0x200000)
    entry, returned = events.kprobes(trace, wanted, X86_64, trace.places[0].address - 0x200000 - 0x40)
    assert entry.definition == f"p:{{name}} {trace.places[0].address:#x} a0=$stack:u64"
    assert returned.definition == "r4096:{name} _stext+0x40 a0=$retval:s32 a1=$stack:u64"


FORMAT = """name: p0
ID: 1443
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;
\tfield:u32 a0;\toffset:16;\tsize:4;\tsigned:0;
\tfield:__data_loc char[] a1;\toffset:20;\tsize:4;\tsigned:1;

print fmt: "(%lx) a0=%u a1=\\"%s\\"", REC->__probe_ip, REC->a0, __get_str(a1)
"""
NEW = FORMAT.replace("1443", "1").replace("u32 a0", "int pid").replace("__data_loc char[] a1", "char comm[4]")
RENAMED = """ID: 2
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
\tfield:int pid;\toffset:8;\tsize:4;\tsigned:1;
\tfield:char oldcomm[16];\toffset:12;\tsize:16;\tsigned:1;
\tfield:char newcomm[16];\toffset:28;\tsize:16;\tsigned:1;
"""
STACK = """ID: 4
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
\tfield:int size;\toffset:8;\tsize:4;\tsigned:1;
\tfield:unsigned long caller[8];\toffset:16;\tsize:64;\tsigned:0;
"""


def record(number: int, pid: int, rest: bytes) -> bytes:
    body = struct.pack("<HBBi", number, 0, 0, pid) + rest
    return body + bytes(-len(body) % 4)


def page(start: int, *items: tuple[int, bytes], small: bool = True) -> bytes:
    """Return a page of records, each with its time in ns after the one before."""
    data = b""
    for delta, body in items:
        if delta >> 27:
            data += struct.pack("<II", 30 | (delta & (1 << 27) - 1) << 5, delta >> 27)
        head = len(body) // 4 if small and len(body) <= 112 else 0
        data += struct.pack("<I", head | (0 if delta >> 27 else delta) << 5)
        data += body if head else struct.pack("<I", len(body) + 4) + body
    return struct.pack("<QQ", start, len(data)) + data


def hit_record(pid: int, count: int, text: bytes = b"") -> bytes:
    where = 24 | len(text) << 16
    return record(1443, pid, struct.pack("<QII", 0xFF00, count, where) + text)


def call_record(pid: int, stack: int) -> bytes:
    return record(1443, pid, struct.pack("<QQ", 0xFF00, stack))


def return_record(pid: int, value: int, stack: int) -> bytes:
    return record(1444, pid, struct.pack("<QQQ", value, stack, 0))


def hits_of(
    wanted: Wanted, *given: tuple[Event, str], tasks: str = "7 cat\n", stack: str = "", filtered: bool = True
) -> Hits:
    return Hits(
        wanted,
        [(event, formats.parse(form)) for event, form in given],
        tasks=Tasks([formats.parse(NEW), formats.parse(RENAMED)], tasks),
        stack=formats.parse(stack) if stack else None,
        began=1_000,
        symbolize=lambda addresses, _entry: tuple(Call(f"f{each:x}", each) for each in addresses),
        filtered=filtered,
    )


PLAIN = Event(
    probe=0,
    name="p0",
    definition="p",
    fields=("a0", "a1"),
    arguments=(("count", 2), ("text", lambda found: bytes(found[3]).rstrip(b"\0").decode())),
)
WANTED = Wanted((Probe("vfs_read", ("count", "text")),))


def test_records_become_hits() -> None:
    hits = hits_of(WANTED, (PLAIN, FORMAT))
    given = page(1_000, (500, hit_record(7, 3, b"word\0")), (1 << 30, hit_record(0, 4)), small=False)
    assert hits.add([(2, given)], 1 << 40) == [
        Hit("vfs_read", {"count": 3, "text": "word"}, 5e-7, 1.5e-6, 2, Task(7, "cat")),
        Hit("vfs_read", {"count": 4, "text": ""}, 1.073742324, 1.073743324, 2, Task(0, "swapper/2")),
    ]
    assert hits.counts == [2]


def test_hits_wait_until_all_cpus_have_sent_theirs() -> None:
    hits = hits_of(WANTED, (PLAIN, FORMAT))
    late = page(1_000, (400, hit_record(7, 1)), (400, hit_record(7, 2)))
    assert [each.args["count"] for each in hits.add([(0, late)], 1_500)] == [1]
    early = page(1_000, (600, hit_record(7, 3)))
    assert [each.args["count"] for each in hits.add([(1, early)], 2_000)] == [3, 2]


def test_padding_absolute_times_and_unknown_events() -> None:
    seen: list[int] = []
    decoders = {1443: lambda _page, _at, time: seen.append(time)}
    data = struct.pack("<II", 29 | 5 << 5, 8) + bytes(4)  # a discarded record
    data += struct.pack("<II", 31 | 77 << 5, 1)  # an absolute time
    data += struct.pack("<I", 2 | 1 << 5) + record(9, 0, b"")
    data += struct.pack("<I", 2 | 2 << 5) + record(1443, 0, b"")
    data += struct.pack("<I", 29) + bytes(8)  # the rest of the page
    pages.decode(struct.pack("<QQ", 1_000, len(data) | 1 << 31) + data, decoders)
    assert seen == [(1 << 27) + 77 + 3]


CALL = Event(probe=0, name="p0", definition="p", fields=("stack",), stack=2)
RETURN = Event(probe=0, name="r0", definition="r", fields=("ret", "stack"), stack=3, returns=True)
CALL_FORMAT = FORMAT.replace("u32 a0;\toffset:16;\tsize:4", "u64 stack;\toffset:16;\tsize:8").replace(
    "20", "24"
)
RETURN_FORMAT = """ID: 1444
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
\tfield:s64 ret;\toffset:8;\tsize:8;\tsigned:1;
\tfield:u64 stack;\toffset:16;\tsize:8;\tsigned:0;
"""


def paired(*items: tuple[int, bytes]) -> tuple[list[tuple[float, int | None]], int]:
    """Return the times in ns and the returns of the hits of a page, and the number of unpaired ones."""
    hits = hits_of(Wanted((Probe("f"),), ret=True), (CALL, CALL_FORMAT), (RETURN, RETURN_FORMAT))
    found = hits.finish([(0, page(1_000, *items))])
    return [(round(each.time * 1e9), each.ret) for each in found], hits.unpaired


def test_returns_belong_to_the_call_at_their_depth_of_the_stack() -> None:
    nested = [(10, call_record(7, 0x8000)), (10, call_record(7, 0x7000))]
    others = [(10, call_record(8, 0x7800))]
    back = [
        (10, return_record(7, 1, 0x7008)),
        (10, return_record(7, 2, 0x8008)),
        (10, return_record(8, 3, 0x7808)),
    ]
    assert paired(*nested, *others, *back) == ([(10, 2), (20, 1), (30, 3)], 0)


def test_a_return_that_was_missed_and_a_call_that_has_not_returned() -> None:
    items = [(10, call_record(7, 0x8000)), (10, call_record(7, 0x7000)), (10, return_record(7, 2, 0x8008))]
    assert paired(*items) == ([(10, 2), (20, None)], 1)
    assert paired((10, call_record(7, 0x8000)), (10, return_record(7, 1, 0x7008))) == ([(10, None)], 0)
    same = [(10, call_record(7, 0x8000)), (10, call_record(7, 0x8000)), (10, return_record(7, 2, 0x8008))]
    assert paired(*same, (10, return_record(7, 1, 0x8008))) == ([(10, 1), (20, 2)], 0)


def test_a_stack_belongs_to_the_record_before_it() -> None:
    event = msgspec.structs.replace(CALL, stack=None)
    hits = hits_of(Wanted((Probe("f"),), backtrace=True), (event, CALL_FORMAT), stack=STACK)
    stack = record(4, 7, struct.pack("<iI3Q", 3, 0, 0xA, 0xB, 2**64 - 1))
    first = page(1_000, (10, call_record(7, 0x8000)))
    assert hits.add([(0, first)], 2_000) == []
    (hit,) = hits.add([(0, page(1_050, (10, stack)))], 3_000)
    assert [each.function for each in hit.backtrace] == ["fa", "fb"]


def test_tasks_have_the_name_of_the_moment() -> None:
    tasks = Tasks([formats.parse(NEW), formats.parse(RENAMED)], "5 sh\n6 kworker/0:1-events\n")
    born = record(1, 5, struct.pack("<Qi4s", 0, 9, b"sh\0\0"))
    renamed = record(2, 9, struct.pack("<i16s16s", 9, b"sh", b"cat"))
    tasks.add([(0, page(1_000, (10, born), (10, renamed)))])
    assert [tasks.at(9, 0, time).comm for time in (1_010, 1_019, 1_020, 9_000)] == ["sh", "sh", "cat", "cat"]
    assert tasks.at(6, 0, 0) == Task(6, "kworker/0:1")
    assert tasks.at(0, 3, 0) == Task(0, "swapper/3")
    assert tasks.at(77, 0, 0) == Task(77, "")


def test_fields_of_tracepoints() -> None:
    form = formats.parse(FORMAT)
    event = events.with_fields(events.tracepoint(0, "sched:x", "a0 == 1"), ["a1", "a0"], form)
    read = records.reader(form, event.fields)
    body = hit_record(7, 3, b"word\0")
    found = read(2, body, 0)
    assert found == [2, 7, b"word\0", 3]
    assert [value if isinstance(value, int) else value(found) for _, value in event.arguments] == ["word", 3]
    assert (event.filter, event.exact) == ("a0 == 1", True)
    with pytest.raises(UsageError, match="has no field a9"):
        events.with_fields(event, ["a9"], form)
    with pytest.raises(VmError, match="unknown form"):
        formats.parse("ID: 1")


@pytest.mark.parametrize(
    ("word", "where", "args"),
    [
        ("sched:sched_switch:next_comm,next_pid", "sched:sched_switch", ("next_comm", "next_pid")),
        ("sched:sched_switch:", "sched:sched_switch", ()),
        ("vfs_read:count", "vfs_read", ("count",)),
        ("open.c:1308:dfd", "open.c:1308", ("dfd",)),
        ("f:a ? b : c", "f", ("a ? b : c",)),
    ],
)
def test_tracepoints_on_the_command_line(word: str, where: str, args: tuple[str, ...]) -> None:
    assert probe.parse([word]) == (Probe(where, args),)


def test_events_of_functions_have_a_definition_as_fprobes() -> None:
    def fprobe(definition: str, *, returns: bool = False) -> str:
        event = Event(probe=0, name="p0", address=0x1000, definition=definition, returns=returns)
        return events.as_fprobe(event, "vfs_read", X86_64).fprobe

    assert fprobe("p:{name} 0x1000") == "f:{name} vfs_read"
    assert fprobe("p:{name} 0x1000 a0=%dx:u64 a1=+0(+24(%di)):string a2=$comm:string a3=$stack:u64") == (
        "f:{name} vfs_read a0=$arg3:u64 a1=+0(+24($arg1)):string a2=$comm:string a3=$stack:u64"
    )
    assert fprobe("p:{name} 0x1000 a0=%ax:u64") == ""
    returned = "r4096:{name} _stext+0x0 a0=$retval:s64 a1=$stack:u64"
    assert fprobe(returned, returns=True) == "f:{name} vfs_read%return a0=$retval:s64 a1=$stack:u64"
