"""What GDB gets of modules without files: symbols as an ELF file, and callers by the module's ORC table."""

from __future__ import annotations

import io
import struct

import pytest
import vmd_frame_state
import vmd_orc
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given
from hypothesis import strategies as st
from vmd_elf_symbols import Area, Symbol, content

from tests.unit.test_trace_unwinding import NEW, OLD, SP, orc, stack
from vmdebug import arch
from vmdebug.trace.unwinding.orc import Layout
from vmdebug.trace.unwinding.stack import Frame

TEXT, DATA = 0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_C000_4000
STT_OBJECT, STT_FUNC = 1, 2


def test_the_symbol_file_has_the_symbols_where_they_are() -> None:
    areas = [Area(TEXT, 0x1000, True), Area(DATA, 0x800, False), Area(DATA + 0x1000, 0, False)]
    symbols = [
        Symbol("brd_init", TEXT + 0x10, 0x20, STT_FUNC),
        Symbol("max_part", DATA + 8, 4, STT_OBJECT),
        Symbol("elsewhere", TEXT - 1, 1, STT_FUNC),
    ]
    file = ELFFile(io.BytesIO(content(62, areas, symbols)))
    assert (file.get_machine_arch(), file["e_type"]) == ("x64", "ET_EXEC")
    names = [(each.name, each["sh_type"], each["sh_addr"], each["sh_size"]) for each in file.iter_sections()]
    assert names[1:3] == [(".text", "SHT_NOBITS", TEXT, 0x1000), (".data1", "SHT_NOBITS", DATA, 0x800)]
    table = file.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    found = [
        (each.name, each["st_value"], each["st_size"], each["st_info"]["type"], each["st_shndx"])
        for each in table.iter_symbols()
    ]
    assert found[1:] == [
        ("brd_init", TEXT + 0x10, 0x20, "STT_FUNC", 1),
        ("max_part", DATA + 8, 4, "STT_OBJECT", 2),
    ]


@given(
    st.sampled_from([(NEW, 2), (OLD, 0)]),
    st.sampled_from([(5, 8, 0, 0), (5, 16, 1, -16), (4, 16, 1, -16), (4, 16, 4, 0), (0, 0, 0, 0)]),
    st.integers(0, 3),
)
def test_orc_tables_say_the_same_as_to_traces(
    layout: tuple[Layout, int], entry: tuple[int, int, int, int], more: int
) -> None:
    form, call = layout
    rows = [(*entry, call + (more == 3)), (5, 8, 0, 0, call)]
    at = 0x8000
    places = b"".join(struct.pack("<i", 0x1000 + 16 * n - (at + 4 * n)) for n in range(len(rows)))
    packed = b"".join(struct.pack("<hhH", so, bo, sp | bp << 4 | kind << 8) for sp, so, bp, bo, kind in rows)
    table = vmd_orc.Table(vmd_orc.addresses(places, at), packed, 8, form.type_bits, call)
    copied = stack(0x2000, SP + 24, 0x3000, SP + 40, 0x4000)

    def word(address: int) -> int:
        found = copied.word(address)
        assert found is not None
        return found

    ours = vmd_orc.caller(table, vmd_orc.Frame(0x1000 + more, SP, SP + 8), word)
    theirs = orc(form, *rows).caller(copied, Frame(0x1000 + more, SP, SP + 8, exact=True))
    if more == 3:  # registers that an exception saved: entry code, which no module has
        assert ours is None
    else:
        assert ours == (None if theirs is None else vmd_orc.Frame(theirs.pc, theirs.sp, theirs.bp))


def test_an_address_before_the_table_has_no_caller() -> None:
    table = vmd_orc.Table((0x1000,), bytes(6), 8, 3, 2)
    assert vmd_orc.caller(table, vmd_orc.Frame(0xFFF, SP, SP), lambda _address: 0) is None


DIRECT_ENTRY = (
    ("488d42ff", "lea    -0x1(%rdx),%rax"),
    ("7790", "ja     0x210"),
    ("55", "push   %rbp"),
    ("bfc00c0000", "mov    $0xcc0,%edi"),
    ("4889e5", "mov    %rsp,%rbp"),
    ("4156", "push   %r14"),
    ("e800000000", "call   0x1a0"),
    ("415e", "pop    %r14"),
    ("5d", "pop    %rbp"),
    ("c3", "ret"),
    ("4c89e7", "mov    %r12,%rdi"),
)
"""direct_entry of lkdtm, as gcc 12 has compiled it: its frame is not made at its first instruction."""


@pytest.mark.parametrize(
    ("count", "state"),
    [
        (0, "NONE"),
        (2, "NONE"),
        (3, "SAVED"),
        (4, "SAVED"),
        (5, "MADE"),
        (8, "MADE"),
        (9, "NONE"),
        (10, "MADE"),
    ],
)
def test_whether_a_function_has_made_its_frame(count: int, state: str) -> None:
    facts = arch.by_name("x86_64").debug
    assert vmd_frame_state.at_end(DIRECT_ENTRY[:count], facts, begun=False).name == state


def test_a_call_is_made_with_a_frame_whatever_was_before_it() -> None:
    facts = arch.by_name("x86_64").debug
    assert vmd_frame_state.at_end([("e800000000", "call   0x10")], facts, begun=False).name == "MADE"
    assert vmd_frame_state.at_end([("0f0b", "ud2")], facts, begun=True).name == "MADE"
