"""Modules of a running guest: its list of them, and their symbols and DWARF where they have been placed."""

from __future__ import annotations

import gzip
import struct
import subprocess
from pathlib import Path

import pytest

from vmdebug import loaded_modules
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel
from vmdebug.kimage import module_file
from vmdebug.trace.expressions.module_image import ModuleImage, PlacedModule
from vmdebug.trace.expressions.orc_table import OrcTable

SOURCE = """
int counter;
__attribute__((noinline)) int counted(int by) { return counter += by; }
__attribute__((section(".init.text"))) int started(void) { return counted(1); }
"""
TEXT, DATA, SLIDE = 0xFFFFFFFFC0000000, 0xFFFFFFFFC0002000, 0x1000000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A relocatable file as the kernel builds modules."""
    directory = tmp_path_factory.mktemp("modules")
    (directory / "mine.c").write_text(SOURCE)
    for argv in ("gcc -g -O1 -fno-pic -c mine.c", "ld -r --build-id=sha1 -o mine.ko mine.o"):
        subprocess.run(argv.split(), cwd=directory, check=True)
    return directory / "mine.ko"


def image(file: Path) -> ModuleImage:
    sections = {".text": TEXT, ".bss": DATA, ".init.text": TEXT + 0x4000}
    return ModuleImage(PlacedModule(name="mine", file=file, sections=sections), SLIDE)


def test_symbols_are_where_the_kernel_has_placed_their_sections(file: Path) -> None:
    placed = image(file)
    ((address, size),) = placed.sized("counted")
    assert address == TEXT - SLIDE
    assert size > 0
    assert [at for at, _ in placed.sized("counter")] == [DATA - SLIDE]
    assert [each.name for each in placed.functions] == ["counted"]
    assert sorted(placed.beginning("count")) == ["counted", "counter"]


def test_what_the_kernel_has_freed_has_no_address(file: Path) -> None:
    assert image(file).sized("started") == ()


def test_the_dwarf_is_relocated(file: Path) -> None:
    placed = image(file)
    unit = placed.dwarf.get_CU_at(placed.aranges.cu_offset_at_addr(TEXT - SLIDE))
    (counted,) = (
        each
        for each in unit.iter_DIEs()
        if each.tag == "DW_TAG_subprogram" and each.attributes["DW_AT_name"].value == b"counted"
    )
    assert counted.attributes["DW_AT_low_pc"].value == TEXT - SLIDE


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.ko.xz").write_bytes(b"cut off")
    with pytest.raises(UsageError, match=r"mine\.ko\.xz cannot be"):
        image(tmp_path / "mine.ko.xz")


def note(build_id: str) -> str:
    """Return the note that the kernel shows in /sys, as hex."""
    return (struct.pack("<3I", 4, len(build_id) // 2, 3) + b"GNU\0").hex() + build_id


def test_the_list_of_the_guest(file: Path, tmp_path: Path) -> None:
    files = "mine/notes/.note.gnu.build-id other/notes/.note.gnu.build-id"
    notes = note("ab" * 8) + note(module_file.build_id(file))
    rows = "mine/sections/.text:0x1\nother/sections/.text:0xffffffffc0000000\nother/sections/.bss:0x10\n"
    other = tmp_path / "other.ko"
    other.write_bytes(file.read_bytes())
    kernel = Kernel(image=tmp_path, origin="", arch="x86_64", modules=tmp_path)
    listed = f"{files}\n{notes}\n{rows}bare/sections/.text:0x1\n"
    assert list(loaded_modules.with_files(listed, kernel)) == [
        PlacedModule(name="other", file=other, sections={".text": TEXT, ".bss": 0x10})
    ]


def test_a_guest_without_modules_has_none(tmp_path: Path) -> None:
    kernel = Kernel(image=tmp_path, origin="", arch="x86_64", modules=tmp_path)
    for listed in ("", "*/notes/.note.gnu.build-id\n\n"):
        assert list(loaded_modules.with_files(listed, kernel)) == []


def test_a_module_of_another_build_is_left_out(file: Path, tmp_path: Path) -> None:
    listed = f"mine/notes/.note.gnu.build-id\n{note('00' * 20)}\nmine/sections/.text:0x1000\n"
    kernel = Kernel(image=tmp_path, origin="", arch="x86_64", modules=file.parent)
    assert list(loaded_modules.with_files(listed, kernel)) == []


def test_a_compressed_module(file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "mine.ko.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert module_file.read(packed) == file.read_bytes()
    assert module_file.build_id(packed) == module_file.build_id(file)
    assert image(packed).sized("counted") == image(file).sized("counted")


def test_orc_entries_of_modules_are_sorted_in() -> None:
    table = OrcTable((0x10, 0x30), b"aaaaaabbbbbb")
    more = table.with_entries([(0x50, b"dddddd"), (0x20, b"cccccc")])
    assert more == OrcTable((0x10, 0x20, 0x30, 0x50), b"aaaaaaccccccbbbbbbdddddd")
    assert table.with_entries([]) is table
