"""Code of gdbinit/ that needs no GDB."""

from __future__ import annotations

import ast
import struct
from pathlib import Path

import msgspec
import pytest
import vmd_elf
import vmd_kernel_scan
import vmd_similar_symbols
import vmd_source_paths

from vmdebug import process
from vmdebug.arch import Debug
from vmdebug.deadline import Deadline

BUILD_ID = bytes(range(20))


def note(owner: bytes, kind: int, description: bytes) -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    header = struct.pack("<III", len(owner) + 1, len(description), kind)
    return header + padded(owner + b"\0") + padded(description)


XEN = note(b"Xen", 6, b"linux\0")
GNU = note(b"GNU", 3, BUILD_ID)


def test_the_build_id_among_other_notes() -> None:
    assert vmd_elf.build_id(XEN + note(b"Linux", 3, b"\0") + GNU) == BUILD_ID.hex()
    assert vmd_elf.build_id(XEN) == ""
    assert vmd_elf.build_id(GNU[:10]) == ""


def elf(tmp_path: Path, address: int, data: bytes) -> str:
    names = b"\0.notes\0.bss\0"
    headers_at = 64 + len(data) + len(names)
    shape = "<16sHHIQQQIHHHHHH"
    header = struct.pack(shape, b"\x7fELF\x02\x01", 2, 62, 1, 0, 0, headers_at, 0, 64, 0, 0, 64, 4, 3)
    sections = b"".join(
        struct.pack("<IIQQQQIIQQ", *row, 0, 0, 0, 0)
        for row in (
            (0, 0, 0, 0, 0, 0),
            (1, 7, 2, address, 64, len(data)),
            (8, 8, 3, address + 0x1000, 64, 0x1000),
            (0, 3, 0, 0, 64 + len(data), len(names)),
        )
    )
    path = tmp_path / "vmlinux"
    path.write_bytes(header + data + names + sections)
    return str(path)


def test_bytes_by_their_linked_address(tmp_path: Path) -> None:
    path = elf(tmp_path, 0xFFFFFFFF81000000, GNU)
    assert vmd_elf.sections(path)[".notes"] == vmd_elf.Section(
        ".notes", 0xFFFFFFFF81000000, offset=64, size=len(GNU), stored=True
    )
    assert vmd_elf.content(path, vmd_elf.sections(path)[".notes"]) == GNU
    assert vmd_elf.read(path, 0xFFFFFFFF81000010, 4) == GNU[16:20]
    assert vmd_elf.read(path, 0xFFFFFFFF81001000, 4) == b"", "the file has no bytes of .bss"
    assert vmd_elf.read(path, 0x1000, 4) == b""


def compiled(tmp_path: Path, *options: str) -> str:
    source = tmp_path / "program.c"
    source.write_text(
        "int counter; static int twice(void) { return 2; } int not_counter(void) { return twice(); }\n"
        "int main(void) { return counter + not_counter(); }\n"
    )
    other = tmp_path / "other.c"
    other.write_text("static int twice = 3; int other(void) { return twice; }\n")
    program = tmp_path / "program"
    line = ["gcc", "-O0", *options, "-o", str(program), str(source), str(other)]
    process.run(line, deadline=Deadline.after(60))
    return str(program)


def test_a_symbol_s_address_by_the_symbol_table(tmp_path: Path) -> None:
    path = compiled(tmp_path)
    rows = process.run(["nm", path], deadline=Deadline.after(60)).stdout.split()
    for name in ("counter", "not_counter", "main"):
        assert vmd_elf.symbol(path, name) == int(rows[rows.index(name) - 2], 16)
    assert vmd_elf.symbol(path, "twice") is None, "there are two"
    assert vmd_elf.symbol(path, "nosuch") is None
    assert vmd_elf.symbol(path, "program.c") is None, "the name of a file is not an address"


def test_a_symbol_s_address_after_another_build(tmp_path: Path) -> None:
    before = vmd_elf.symbol(compiled(tmp_path, "-no-pie"), "main")
    assert vmd_elf.symbol(compiled(tmp_path, "-pie"), "main") != before
    assert vmd_elf.symbol(compiled(tmp_path, "-s"), "main") is None, "it is stripped"


def test_a_file_that_is_not_elf(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_text("hello")
    with pytest.raises(ValueError, match="is not a 64-bit little-endian ELF file"):
        vmd_elf.sections(str(tmp_path / "vmlinux"))


@pytest.mark.parametrize(
    ("offset", "value", "told"),
    [
        (0x28, 1 << 63, "is damaged: it should have 256 bytes at 9223372036854775808, and ends at"),
        (0x3C, 0xFFFF, "is damaged: it should have 4194240 bytes"),
        (0x3E, 0xFFFF, "is damaged: it has no section 65535, which should hold the names"),
    ],
)
def test_a_damaged_elf_file(tmp_path: Path, offset: int, value: int, told: str) -> None:
    """e_shoff, e_shnum and e_shstrndx of elf(5)."""
    path = elf(tmp_path, 0xFFFFFFFF81000000, GNU)
    data = bytearray(Path(path).read_bytes())
    struct.pack_into("<Q" if offset == 0x28 else "<H", data, offset, value)
    Path(path).write_bytes(data)
    with pytest.raises(ValueError, match=told):
        vmd_elf.sections(path)


LISTING = """
Object file /k/vmlinux:

[ 0] D 0x0 fixed_percpu_data section .data..percpu  version.c
[4996] T 0xffffffff81ad9af7 start_kernel section .init.text  main.c
[4997] T 0xffffffff81ad9407 x86_64_start_kernel section .init.text  head64.c
[4998] t 0xffffffff81000000 startup_64 section .text
"""


def test_the_nearest_symbols() -> None:
    names = vmd_similar_symbols.listed(LISTING)
    assert names == {"fixed_percpu_data", "start_kernel", "x86_64_start_kernel", "startup_64"}
    assert vmd_similar_symbols.nearest("strat_kernel", names) == ["start_kernel"]
    assert vmd_similar_symbols.nearest("unlike_any_of_them", names) == []


START = 0xFFFFFFFF81000000
BANNER = b"Linux version 6.1.0 (root@vm) #1 SMP Mon Nov 23 2026\n"


def kernel_memory(layout: dict[int, bytes]) -> bytearray:
    memory = bytearray(2 << 20)
    for at, data in layout.items():
        memory[at : at + len(data)] = data
    return memory


def test_which_kernel_runs_by_its_memory() -> None:
    vdso = note(b"GNU", 3, bytes(20))
    layout = {
        0x1000: b"Linux version 6.1.0 (root@vm) # SMP \n",
        0x2000: b"%s version %s\nLinux version %s (root@vm) and much more than the real one ever has\n",
        0x3000: BANNER,
        0x8000: b"\x7fELF",
        0x9100: vdso,
        0x120010: GNU,
    }
    memory = kernel_memory(layout)
    hole = range(0x100000, 0x110000)

    def read(address: int, size: int) -> bytes:
        at = address - START
        return b"" if at < hole.stop and at + size > hole.start else bytes(memory[at : at + size])

    found = vmd_kernel_scan.kernel(read, START + 0x10)
    assert found == vmd_kernel_scan.Kernel(BANNER.decode().strip(), BUILD_ID.hex())


@pytest.mark.parametrize(
    ("recorded", "given", "expected"),
    [
        ("/build/linux/init/version.c", "tree", ("/build/linux", "tree")),
        ("init/version.c", "tree", ("", "tree")),
        ("../init/version.c", "tree", ("..", "tree")),
        ("../init/version.c", "tree/build", ("..", "tree")),
        ("/build/linux/init/version-timestamp.c", "tree", None),
        ("/build/linux/kernel/time/hrtimer.c", "tree", ("/build/linux", "tree")),
        ("/build/linux/kernel/fork.c", "tree", None),
        ("/build/linux/arch/toy/kernel/head_64.S", "tree", ("/build/linux", "tree")),
        ("arch/toy/kernel/head_64.S", "tree", ("", "tree")),
        ("../arch/toy/kernel/head.S", "tree", None),
    ],
)
def test_recorded_names_become_present_ones(
    recorded: str, given: str, expected: tuple[str, str] | None, tmp_path: Path
) -> None:
    (tmp_path / "tree/init").mkdir(parents=True)
    (tmp_path / "tree/init/version.c").touch()
    (tmp_path / "tree/kernel/time").mkdir(parents=True)
    (tmp_path / "tree/kernel/time/hrtimer.c").touch()
    (tmp_path / "tree/arch/toy/kernel").mkdir(parents=True)
    (tmp_path / "tree/arch/toy/kernel/head_64.S").touch()
    found = vmd_source_paths.rule(recorded, tmp_path / given)
    assert found == (None if expected is None else (expected[0], tmp_path / expected[1]))


def test_gdb_takes_each_fact_that_a_row_has_for_it() -> None:
    """Read as text: importing it needs GDB."""
    text = (Path(__file__).parents[2] / "gdbinit" / "vmd_arch.py").read_text()
    row = next(
        each for each in ast.parse(text).body if isinstance(each, ast.ClassDef) and each.name == "Arch"
    )
    fields = [each.target.id for each in row.body if isinstance(each, ast.AnnAssign)]  # type: ignore[union-attr]
    assert fields == [field.name for field in msgspec.structs.fields(Debug)]
