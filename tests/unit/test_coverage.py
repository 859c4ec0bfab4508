"""Coverage: what the plugin records, line tables, branches, the data file of coverage.py and its reports."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from coverage import CoverageData
from coverage.exceptions import DataError

from tests.unit.test_trace_plugin import FUNCTION, Qemu, emulator, qemu
from vmdebug import arch, process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, StateError, UsageError
from vmdebug.guest import Kernel
from vmdebug.trace.coverage import changes, code, library, mapping, source_text, wire
from vmdebug.trace.coverage.kernel_code import KernelCode
from vmdebug.trace.coverage.link import CoverageLink
from vmdebug.trace.coverage.mapping import EXIT, Known, Lines, Piece
from vmdebug.trace.coverage.wire import Block
from vmdebug.trace.expressions.module_image import PlacedModule

__all__ = ["emulator", "qemu"]  # fixtures

JUMPS = arch.by_name("x86_64").conditional_jumps
JUMP = 0x2000
SOURCE = """\
int add(int a, int b);
int twice(int a)
{
	if (a > 3)
		return add(a, a);
	return add(a, 1);
}

static struct { int x; } table[] = {
	{ 1 },
};

SYSCALL_DEFINE3(read, unsigned int, fd,
		char __user *, buf, size_t, count)
{
	return 0;
}
"""


def deadline() -> Deadline:
    return Deadline.after(120)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A relocatable file, as modules are, and its source."""
    made = tmp_path_factory.mktemp("coverage")
    (made / "twice.c").write_text(SOURCE.partition("static")[0])
    words = ["gcc", "-O2", "-g", "-gdwarf-5", "-fcf-protection=none", "-c", "twice.c", "-o", "twice.o"]
    process.run(words, cwd=made, deadline=deadline())
    return made / "twice.o"


def test_blocks_and_the_ways_of_their_jumps(qemu: Qemu) -> None:
    qemu("insn", f"{JUMP:x}", "7402")  # je +2
    for address in (JUMP + 2, JUMP + 4):
        qemu("insn", f"{address:x}", "90")
    with CoverageLink(qemu.path, "base") as link:
        recorded = link.begin([(0, 1 << 63)], JUMPS, keep=False)
        qemu("pause")
        assert link.wait_ready(deadline())
        for address in (JUMP, JUMP + 4, FUNCTION):
            qemu.run(address)
        assert set(recorded.blocks()) == {
            Block(JUMP, JUMP + 4, 2, 0, True, False),
            Block(JUMP + 4, 0, 1, 0, False, False),
            Block(FUNCTION, 0, 4, 0, False, False),
        }
        recorded.clear()
        assert list(recorded.blocks()) == []
        for address in (JUMP, JUMP + 2):
            qemu.run(address)
        assert {each.start: each.passed for each in recorded.blocks()} == {JUMP: True, JUMP + 2: False}


def test_only_one_recording_at_a_time_and_it_may_outlive_its_client(qemu: Qemu) -> None:
    with CoverageLink(qemu.path, "base") as link:
        link.begin([(0, 1 << 63)], JUMPS, keep=True)
        qemu("pause")
        assert link.wait_ready(deadline())
        with CoverageLink(qemu.path, "base") as other, pytest.raises(StateError, match="recorded already"):
            other.begin([(0, 1 << 63)], JUMPS, keep=True)
    qemu.run(FUNCTION)
    with CoverageLink(qemu.path, "base") as link:
        recorded = link.recorded()
        assert recorded is not None
        assert [each.start for each in recorded.blocks()] == [FUNCTION]
        link.end()
        assert link.recorded() is None


def test_the_layout_of_the_file() -> None:
    start, size = wire.layout([(1, 2)], JUMPS, keep=True, capacity=4096)
    assert start[:8] == wire.MAGIC.to_bytes(4, "little") + wire.KEEP.to_bytes(4, "little")
    assert len(start) == wire.SIZE_AT + 16 + 16 * len(JUMPS)
    assert size == 4096 + 24 * 4096 + 3 * 4096


def test_lines_are_those_of_pyelftools(built: Path) -> None:
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - what the decoder is compared with

    found = code.read(built, deadline())
    ours = {
        (address & 0xFFFF, row >> 2 & 0xFFFF)
        for address, row in zip(found.addresses, found.rows, strict=True)
        if row & 1
    }
    with built.open("rb") as stream:
        dwarf = ELFFile(stream).get_dwarf_info()
        (unit,) = dwarf.iter_CUs()
        table = dwarf.line_program_for_CU(unit)
        assert table is not None
        states = [each.state for each in table.get_entries()]
    theirs = {(s.address, s.line) for s in states if s and s.is_stmt and not s.end_sequence}
    assert ours == theirs
    assert found.files[0].endswith("/twice.c")


def test_lines_and_branches_of_blocks(built: Path) -> None:
    found = code.read(built, deadline())
    (jump,) = found.jumps
    file = str(built.parent / "twice.c")
    section = found.sections[".text"] << code.SECTION_SHIFT
    moved = 0x7000 - section
    piece = Piece(0x7000, 0x7000 + found.sizes[found.sections[".text"]], found, moved)
    everything = mapping.possible(found)[file]
    assert everything.lines == {3, 4, 5, 6}
    ways = {to for line, to in everything.branches if line == 4}
    assert ways == {5, 6}
    start = jump.address - section
    block = Block(0x7000, jump.taken + moved, start + 2, start, False, True)
    executed = mapping.executed([block, Block(0x10, 0, 4, 0, False, False)], [piece])
    assert executed.elsewhere == 1
    assert executed.files[file].lines == {3, 4}
    assert len(executed.files[file].branches) == 1
    assert executed.files[file].branches < everything.branches


def test_the_code_of_a_loaded_module_is_named(built: Path, tmp_path: Path) -> None:
    main = tmp_path / "init" / "main.c"
    main.parent.mkdir()
    main.write_text("int start_kernel(void) { return 1; }\n")
    process.run(["gcc", "-g", "-c", str(main), "-o", "vmlinux"], cwd=tmp_path, deadline=deadline())
    kernel = KernelCode(Kernel(image=tmp_path, origin="", arch="x86_64", vmlinux=tmp_path / "vmlinux"))
    assert kernel.root == tmp_path
    (tmp_path / "bare.ko").write_bytes(b"")
    bare = PlacedModule(name="bare", file=tmp_path / "bare.ko", sections={".text": 0x9000})
    loaded = PlacedModule(name="mine", file=built, sections={".text": 0x7000, ".bss": 0x7000})
    executed = kernel.executed([Block(0x7000, 0, 2, 0, False, False)], 0, [bare, loaded])
    file = str(built.parent / "twice.c")
    assert 3 in executed[file].lines
    assert kernel.known(executed).modules == {"mine": [file]}
    (note,) = kernel.notes
    assert note.startswith("the code of the module bare has no lines")


def test_a_recording_becomes_a_data_file_with_contexts_and_reports(tmp_path: Path) -> None:
    source = tmp_path / "tree" / "a.c"
    source.parent.mkdir()
    source.write_text(SOURCE)
    lines = Lines(lines=frozenset({3, 4, 5, 6}), branches=frozenset({(4, 5), (4, 6), (4, EXIT)}))
    known = Known(root=str(source.parent), files={str(source): lines}, modules={"brd": [str(source)]})
    seen = Lines(lines=frozenset({3, 4, 6}), branches=frozenset({(4, 6)}))
    path = tmp_path / "kernel.coverage"
    library.save(path, known, {"test_a": {str(source): seen}})
    library.save(path, known, {"test_b": {str(source): Lines(lines=frozenset({3}))}}, append=True)

    data = library.Data(path)
    assert data.executed(str(source)) == seen
    assert data.contexts_of(str(source)) == {3: ["test_a", "test_b"], 4: ["test_a"], 6: ["test_a"]}
    assert data.files(()) == data.files(["a.c"]) == data.files(["brd"]) == [str(source)]
    with pytest.raises(UsageError, match=r"no code from b\.c"):
        data.files(["b.c"])

    percent, table = library.report(path, "term", None, data.files(()))
    assert percent == pytest.approx(100 * 4 / 7)
    assert table.splitlines()[2].split()[:3] == ["a.c", "4", "1"]
    for form, where in (("html", "pages"), ("lcov", "a.info"), ("xml", "a.xml"), ("json", "a.json")):
        library.report(path, form, tmp_path / where, data.files(()))
    lcov = (tmp_path / "a.info").read_text()
    assert {"SF:a.c", "DA:5,0", "DA:6,1", "BRDA:4,0,to line 6,1", "FNDA:1,twice"} <= set(lcov.splitlines())
    report = json.loads((tmp_path / "a.json").read_text())["files"]["a.c"]
    assert report["missing_lines"] == [5]
    assert "test_b" in (tmp_path / "pages" / "a_c.html").read_text()
    assert 'line number="5" hits="0"' in (tmp_path / "a.xml").read_text()


def test_the_files_of_workers_become_one(tmp_path: Path) -> None:
    known = Known(root="/tree", files={"/tree/a.c": Lines(lines=frozenset({1, 2}))})
    parts = [tmp_path / f"kernel.coverage.gw{number}" for number in range(2)]
    for number, part in enumerate(parts):
        library.save(part, known, {f"test_{number}": {"/tree/a.c": Lines(lines=frozenset({number + 1}))}})
    library.combine(tmp_path / "kernel.coverage", parts)
    assert {each.name for each in tmp_path.iterdir()} == {"kernel.coverage", "kernel.coverage-lines"}
    assert library.Data(tmp_path / "kernel.coverage").contexts_of("/tree/a.c") == {
        1: ["test_0"],
        2: ["test_1"],
    }


def test_a_full_disk_leaves_the_data_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kernel.coverage"
    known = Known(root="/tree", files={"/tree/a.c": Lines(lines=frozenset(range(1, 50_000)))})
    library.save(path, known, {"before": {"/tree/a.c": Lines(lines=frozenset({1}))}})
    before = path.read_bytes(), library.beside(path).read_bytes()

    def no_room(data: CoverageData) -> None:
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise DataError(f"Couldn't use data file: {full}") from full

    monkeypatch.setattr(CoverageData, "write", no_room)
    for append in (False, True):
        with pytest.raises(HostError, match=r"cannot write .*disk is full; the file system /") as refused:
            library.save(path, known, {"after": {}}, append=append)
        assert refused.value.hint == "make room there, or give another path"
    assert (path.read_bytes(), library.beside(path).read_bytes()) == before
    assert {each.name for each in tmp_path.iterdir()} == {"kernel.coverage", "kernel.coverage-lines"}


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kernel.coverage"
    with pytest.raises(UsageError, match="does not exist"):
        library.Data(path)
    path.write_text("text")
    library.beside(path).write_text('{"root": "/", "files": {}}')
    with pytest.raises(UsageError, match="is not a data file"):
        library.Data(path)


def test_functions_of_c_source() -> None:
    assert list(source_text.functions(SOURCE)) == [("twice", 2, 7), ("SYSCALL_DEFINE3(read)", 13, 17)]
    assert ["".join(text for _, text in line) for line in source_text.tokens("int a;\n\tb\n")] == [
        "int a;",
        "        b",
    ]


def test_the_changed_lines_of_a_tree(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        process.run(["git", "-C", str(tmp_path), *identity, *words], deadline=deadline())

    git("init", "-q")
    (tmp_path / "ä b.c").write_text("1\n2\n3\n4\n")
    git("add", ".")
    git("commit", "-qm", "one")
    (tmp_path / "ä b.c").write_text("1\nx\ny\n3\n4\nz\n")
    assert changes.changed(tmp_path, "HEAD", deadline()) == {str(tmp_path / "ä b.c"): {2, 3, 6}}
    with pytest.raises(UsageError, match="does not compare"):
        changes.changed(tmp_path, "nothing", deadline())


def test_the_lines_not_reached() -> None:
    changed = {"a": frozenset({1, 2, 3}), "b": frozenset({1})}
    code_of, executed = (
        {"a": frozenset({2, 3}), "b": frozenset({1})},
        {"a": frozenset({3}), "b": frozenset({1})},
    )
    assert changes.unreached(changed, code_of, executed) == {"a": {2}}
    assert changes.ranges(frozenset({3, 4, 5, 9})) == "3-5, 9"
