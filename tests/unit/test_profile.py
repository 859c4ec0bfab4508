"""Profiles: perf's records, mappings, names, and the files that profiles are written to."""

from __future__ import annotations

import gzip
import json
import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.trace.profile import writing
from vmdebug.trace.profile.mappings import Mappings, learn
from vmdebug.trace.profile.naming import Namer
from vmdebug.trace.profile.perf import Records
from vmdebug.trace.profile.profile import Profile, ProfileFrame, ProfileSample, ProfileTask
from vmdebug.trace.profile.programs import Program
from vmdebug.trace.profile.raw import Collected, Mapped, RawSample

READ = ProfileFrame("vfs_read", "vmlinux", "kernel")
ENTRY = ProfileFrame("entry_SYSCALL_64", "vmlinux", "kernel")
MAIN = ProfileFrame("main <x>", "prog", "user")
NULL = ProfileFrame("null_submit", "null_blk", "module")


def made(*weights: int, period: int = 10) -> Profile:
    """Return a profile with one sample for each weight: of `main`, then deeper and deeper."""
    stacks = ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3))
    samples = tuple(ProfileSample(n / 1000, n % 2, 0, n, weight) for n, weight in enumerate(weights))
    return Profile(
        unit="ns",
        period=period,
        seconds=2.5,
        collector="the guest's kernel",
        vm="vm",
        kernel="6.1",
        frames=(MAIN, ENTRY, READ, NULL),
        stacks=stacks,
        tasks=(ProfileTask(7, 8, "a b"),),
        samples=samples,
    )


WHOLE = made(10, 20, 30, 40)


# perf's records


def record(kind: int, body: bytes, misc: int = 0) -> bytes:
    return struct.pack("<IHH", kind, misc, 8 + len(body)) + body


def trailed(kind: int, body: bytes, time: int, misc: int = 0) -> bytes:
    return record(kind, body + struct.pack("<IIQII", 0, 0, time, 0, 0), misc)


def sample(pid: int, time: int, *chain: int, cpu: int = 0) -> bytes:
    head = struct.pack("<QIIQIIQQ", 1, pid, pid, time, cpu, 0, 1000, len(chain))
    return record(9, head + struct.pack(f"<{len(chain)}Q", *chain))


def mapped(pid: int, time: int, start: int, path: str, *, protection: int = 5) -> bytes:
    name = path.encode() + b"\0" * (8 - len(path) % 8)
    fixed = struct.pack("<IIQQQ24xII", pid, pid, start, 0x1000, 0x1000, protection, 0)
    return trailed(10, fixed + name, time)


KERNEL, USER = (1 << 64) - 128, (1 << 64) - 512


def test_records_of_several_cpus_are_taken_in_the_order_of_time() -> None:
    records = Records(Mappings(), {(5, 5): "old"})
    named = trailed(3, struct.pack("<II", 5, 5) + b"new\0\0\0\0\0", 20)
    records.add({0: sample(5, 10, KERNEL, 0xFFFF, USER, 0x10, 0x20) + sample(5, 30, USER, 0x10), 1: named})
    first, second = records.samples
    assert (first.comm, first.kernel, first.user) == ("old", (0xFFFF,), (0x10, 0x20))
    assert (second.comm, second.kernel, second.user, second.weight) == ("new", (), (0x10,), 1000)


def test_the_idle_task_has_the_name_of_its_cpu() -> None:
    records = Records(Mappings(), {})
    records.add({3: sample(0, 10, KERNEL, 1, cpu=3)})
    assert records.samples[0].comm == "swapper/3"


def test_lost_records_are_counted() -> None:
    records = Records(Mappings(), {})
    records.add({0: trailed(2, struct.pack("<QQ", 1, 12), 5)})
    assert records.lost == 12


def test_a_record_that_is_cut_off_ends_a_ring() -> None:
    records = Records(Mappings(), {})
    records.add({0: sample(5, 10, USER, 0x10) + sample(5, 30, USER, 0x10)[:-4]})
    assert len(records.samples) == 1


def test_a_child_has_its_parents_mappings_until_it_executes_a_program() -> None:
    mappings = Mappings()
    records = Records(mappings, {})
    forked = trailed(7, struct.pack("<IIIIQ", 6, 5, 6, 5, 20), 20)
    executed = trailed(3, struct.pack("<II", 6, 6) + b"new\0\0\0\0\0", 30, misc=1 << 13)
    late = mapped(5, 25, 0x9000, "/late")
    ring = mapped(5, 10, 0x1000, "/sh") + forked + late + executed
    records.add({0: ring + mapped(6, 31, 0x5000, "/new")})
    found = [mappings.find(6, address, time) for address, time in ((0x1800, 22), (0x9800, 28), (0x1800, 40))]
    assert [each and each.path for each in found] == ["/sh", None, None]
    new = mappings.find(6, 0x5800, 40)
    assert new is not None
    assert (new.path, new.offset, new.pid) == ("/new", 0x1000, 6)


def test_data_is_no_program() -> None:
    mappings = Mappings()
    Records(mappings, {}).add({0: mapped(5, 10, 0x1000, "/data", protection=3)})
    assert mappings.find(5, 0x1800, 20) is None


def test_processes_that_exist_are_read_from_proc() -> None:
    text = """P 12 prog
T 12 12 prog
T 12 13 a worker
00401000-00402000 r-xp 00001000 00:02 5                          /bin/my prog (deleted)
00403000-00404000 rw-p 00003000 00:02 5                          /bin/my prog
7ffff000-80000000 r-xp 00000000 00:00 0                          [vdso]
"""
    mappings = Mappings()
    assert learn(mappings, text) == {(12, 12): "prog", (12, 13): "a worker"}
    assert mappings.find(12, 0x401800, 5) == Mapped(0x401000, 0x402000, 0x1000, "/bin/my prog", 12)
    assert mappings.find(12, 0x403800, 5) is None


# names


def named(samples: list[RawSample], kallsyms: str = "", mappings: Mappings | None = None) -> Profile:
    found = mappings or Mappings()
    collected = Collected(
        samples=samples,
        unit="ns",
        period=1,
        seconds=1.0,
        kallsyms=kallsyms,
        mapping=found.find,
        read_file=lambda _pid, _path: None,
    )
    return Namer(None, 0, collected).profile(collector="c", vm="v", kernel="k")


def test_functions_of_the_kernel_and_of_modules_come_from_kallsyms() -> None:
    kallsyms = "ffffffff81000000 T a\nffffffff81000100 t b\nffffffffa0000000 t init\t[null_blk]\n"
    raw = RawSample(5, 0, 1, 1, "x", (0xFFFFFFFFA0000004, 0xFFFFFFFF81000100), (), 1)
    profile = named([raw], kallsyms)
    # The second address is where a call returns to, so its instruction is the one before: in `a`.
    assert [(each.name, each.where, each.kind) for each in profile.frames] == [
        ("init", "null_blk", "module"),
        ("a", "vmlinux", "kernel"),
    ]
    assert profile.stacks == ((1, 0),)


def test_a_chain_of_user_space_ends_where_no_program_is() -> None:
    mappings = Mappings()
    mappings.map(1, 0, Mapped(0x1000, 0x2000, 0, "/bin/prog"))
    raw = RawSample(5, 0, 1, 1, "x", (), (0x1100, 0x1200, 0xDEAD0000, 0x1300), 1)
    profile = named([raw], mappings=mappings)
    assert [each.name for each in profile.frames] == ["[prog]"]
    assert profile.stacks == ((0,),)
    assert profile.notes == ("no symbols in /bin/prog",)


def test_an_address_without_a_mapping_is_unknown() -> None:
    profile = named([RawSample(5, 0, 1, 1, "x", (), (0x1100,), 1)])
    assert profile.frames == (ProfileFrame("[unknown]", "", "user"),)


def test_functions_of_programs_come_from_their_symbols(tmp_path: Path) -> None:
    source, program = tmp_path / "p.c", tmp_path / "p"
    source.write_text("int work(int x) { return x * 3; }\nint main(void) { return work(1); }\n")
    process.run(["gcc", "-O0", "-no-pie", "-o", str(program), str(source)], deadline=Deadline.after(60))
    listed = process.run(["nm", str(program)], deadline=Deadline.after(60)).stdout
    address = next(int(line.split()[0], 16) for line in listed.splitlines() if line.endswith(" T work"))
    found = Program.read(program.read_bytes())
    assert found is not None
    assert found.function_at(address - 0x400000) == "work"
    assert found.function_at(1 << 40) == ""


def test_a_file_that_is_no_program_has_no_functions() -> None:
    assert Program.read(b"#!/bin/sh\n") is None


# the profile


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(WHOLE.encode())
    assert Profile.load(path) == WHOLE


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"unit": 3}'])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is no profile of vmdebug"):
        Profile.load(path)


def test_a_damaged_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(WHOLE.encode().decode().replace('"stacks":[[0]', '"stacks":[[9]'))
    with pytest.raises(UsageError, match="an index is out of range"):
        Profile.load(path)


def test_functions_have_their_own_weight_and_that_with_callees() -> None:
    assert WHOLE.functions() == [(NULL, 40, 40), (READ, 30, 70), (ENTRY, 20, 90), (MAIN, 10, 100)]
    assert WHOLE.by_task() == [(ProfileTask(7, 8, "a b"), 100)]
    assert (WHOLE.total, len(WHOLE)) == (100, 4)


# formats


def test_the_format_is_the_wanted_one_or_that_of_the_file() -> None:
    names = ["a.html", "a.svg", "a.json", "a.speedscope.json", "a.pb.gz", "a.folded", "a.perf", "a.txt"]
    found = [writing.format_of(None, each) for each in names]
    assert found == ["html", "svg", "json", "speedscope", "pprof", "folded", "firefox", "text"]
    assert writing.format_of("svg", "a.json") == "svg"
    assert writing.format_of(None, None) == "text"


@pytest.mark.parametrize(
    ("wanted", "path", "two", "words"),
    [
        ("hmtl", None, False, "there is no format 'hmtl' of profiles"),
        (None, "a.png", False, "the name a.png does not tell a format"),
        ("pprof", None, True, "there is no format 'pprof' of differences"),
    ],
)
def test_an_unknown_format_is_refused(wanted: str | None, path: str | None, two: bool, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        writing.format_of(wanted, path, two=two)


def test_folded_stacks() -> None:
    assert writing.rendered(WHOLE, "folded").decode().splitlines() == [
        "a b;main <x> 10",
        "a b;main <x>;entry_SYSCALL_64 20",
        "a b;main <x>;entry_SYSCALL_64;vfs_read 30",
        "a b;main <x>;entry_SYSCALL_64;vfs_read;null_submit 40",
    ]
    assert writing.rendered(WHOLE, "folded", made(5)).decode().splitlines()[:2] == [
        "a b;main <x> 5 10",
        "a b;main <x>;entry_SYSCALL_64 0 20",
    ]


SVG = "{http://www.w3.org/2000/svg}"


def test_a_flame_graph_has_each_function_at_its_place() -> None:
    root = ET.fromstring(writing.rendered(WHOLE, "svg"))  # noqa: S314 - our own
    frames = [each.attrib for each in root.iter(f"{SVG}svg") if each.get("class") == "frame"]
    found = {each["data-name"]: (each["x"], each["width"], int(each["y"])) for each in frames}
    assert {name: width for name, (_, width, _) in found.items()} == {
        "all": "100.0000%",
        "a b": "100.0000%",
        "main <x>": "100.0000%",
        "entry_SYSCALL_64": "90.0000%",
        "vfs_read": "70.0000%",
        "null_submit": "40.0000%",
    }
    heights = [found[each][2] for each in ("all", "a b", "main <x>", "vfs_read")]
    assert heights == sorted(heights, reverse=True)


def test_a_compared_graph_says_how_much_a_function_has_changed() -> None:
    text = writing.rendered(WHOLE, "svg", made(100)).decode()
    assert "vfs_read (vmlinux): 70.0 %, 70 ns; +70.0 points, before 0.0 %" in text


def test_a_page_is_one_file() -> None:
    text = writing.rendered(WHOLE, "html").decode()
    assert '<td class="name">vfs_read <small>vmlinux</small></td>' in text
    assert not re.search(r'(src|href)="', text)
    assert "main &lt;x&gt;" in text


def test_a_profile_without_samples_can_be_written_in_every_format() -> None:
    for form in writing.FORMATS:
        assert isinstance(writing.rendered(made(), form), bytes)
    for form in writing.DIFFERENCE_FORMATS:
        assert isinstance(writing.rendered(made(), form, made()), bytes)


def test_speedscope_has_a_profile_for_each_thread() -> None:
    found = json.loads(writing.rendered(WHOLE, "speedscope"))
    assert found["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    (thread,) = found["profiles"]
    assert (thread["type"], thread["name"], thread["unit"]) == ("sampled", "a b 8", "nanoseconds")
    assert thread["samples"] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert thread["weights"] == [10, 20, 30, 40]
    assert thread["endValue"] == 100
    assert [each["name"] for each in found["shared"]["frames"]][2] == "vfs_read"


def test_firefox_profiler_reads_the_samples() -> None:
    """The expressions are those of its importer, src/profile-logic/import/linux-perf.ts."""
    lines = writing.rendered(WHOLE, "firefox").decode().splitlines()
    assert re.match(r"^\S.*?\s+(?:\d+/)?\d+\s+(?:\[\d+\]\s+)?[\d.]+:", lines[0])
    start = re.match(r"^(.*)\s+([\d.]+):", lines[0])
    assert start is not None
    who = re.match(r"^(.*)\s+(?:(\d+)/)?(\d+)\b", start[1].partition(" [")[0])
    assert who is not None
    assert who.groups() == ("a b", "7", "8")
    frames = [re.match(r"^\s*(\w+)\s*(.+) \(([^)]*)\)", line) for line in lines if line.startswith("\t")]
    assert [each and each.groups()[1:] for each in frames[-4:]] == [
        ("null_submit", "null_blk.ko"),
        ("vfs_read", "[kernel.kallsyms]"),
        ("entry_SYSCALL_64", "[kernel.kallsyms]"),
        ("main <x>", "prog"),
    ]


def test_pprof_is_its_message() -> None:
    """Read by Google's own library, with the fields that proto/profile.proto of pprof has."""
    message = pprof_message()
    message.ParseFromString(gzip.decompress(writing.rendered(WHOLE, "pprof")))
    strings = list(message.string_table)
    assert strings[0] == ""
    kinds = [(strings[each.type], strings[each.unit]) for each in message.sample_type]
    assert kinds == [("samples", "count"), ("cpu", "nanoseconds")]
    assert [list(each.value) for each in message.sample] == [[1, 10], [1, 20], [1, 30], [1, 40]]
    functions = {each.id: strings[each.name] for each in message.function}
    assert not any(each.system_name for each in message.function)
    locations = {each.id: functions[each.line[0].function_id] for each in message.location}
    deepest = [locations[each] for each in message.sample[-1].location_id]
    assert deepest == ["null_submit", "vfs_read", "entry_SYSCALL_64", "main <x>"]
    files = {each.id: strings[each.filename] for each in message.mapping}
    assert [files[each.mapping_id] for each in message.location] == ["prog", "vmlinux", "vmlinux", "null_blk"]
    assert (message.duration_nanos, message.period) == (2_500_000_000, 10)
    labels = {strings[each.key]: strings[each.str] or each.num for each in message.sample[0].label}
    assert labels == {"task": "a b", "tid": 8}


PPROF = {
    "Profile": [
        ("sample_type", 1, "ValueType", True),
        ("sample", 2, "Sample", True),
        ("mapping", 3, "Mapping", True),
        ("location", 4, "Location", True),
        ("function", 5, "Function", True),
        ("string_table", 6, "string", True),
        ("duration_nanos", 10, "int64", False),
        ("period_type", 11, "ValueType", False),
        ("period", 12, "int64", False),
    ],
    "ValueType": [("type", 1, "int64", False), ("unit", 2, "int64", False)],
    "Sample": [("location_id", 1, "uint64", True), ("value", 2, "int64", True), ("label", 3, "Label", True)],
    "Label": [("key", 1, "int64", False), ("str", 2, "int64", False), ("num", 3, "int64", False)],
    "Mapping": [
        ("id", 1, "uint64", False),
        ("filename", 5, "int64", False),
        ("has_functions", 7, "bool", False),
    ],
    "Location": [("id", 1, "uint64", False), ("mapping_id", 2, "uint64", False), ("line", 4, "Line", True)],
    "Line": [("function_id", 1, "uint64", False)],
    "Function": [("id", 1, "uint64", False), ("name", 2, "int64", False), ("system_name", 3, "int64", False)],
}


def pprof_message() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="p.proto", package="p", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto
    for name, fields in PPROF.items():
        described = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL
            added = described.field.add(name=field, number=number, label=label)
            if kind in PPROF:
                added.type, added.type_name = types.TYPE_MESSAGE, f".p.{kind}"
            else:
                added.type = getattr(types, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Profile"))()
