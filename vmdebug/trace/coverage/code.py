"""The code of a vmlinux or a module's file: its source lines and its conditional jumps, by address.

In a module's file, as in every relocatable file, each section begins at 0. Here an address in it has the
number of its section above `SECTION_SHIFT`.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.filecache import cached
from vmdebug.kimage import debuginfo, elf
from vmdebug.trace.coverage.line_program import FILE_SHIFT, Decoder, Sequence, Strings

SECTION_SHIFT = 48
"""Above it is the number of the section, in the addresses of a relocatable file."""

_RELOCATED_BYTES = {"EM_X86_64": {1: 8, 10: 4, 11: 4}, "EM_AARCH64": {257: 8, 258: 4}}
"""The sizes of R_X86_64_64, _32 and _32S, and of R_AARCH64_ABS64 and _ABS32: what debug sections have."""

_SHN_LORESERVE = 0xFF00

_SECTION = re.compile(r"^Disassembly of section (\S+):$", re.MULTILINE)
_JUMP = re.compile(
    r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(?:bnd |notrack )?"
    r"(?:j(?!mp)[a-z]+|loop[a-z]*)(?:,p[nt])? +([0-9a-f]+)\b"
    r"[^\n]*(?:\n\t+[0-9a-f]+: R_\w+\t([^\s+-]+)([+-]0x[0-9a-f]+)?)?",
    re.MULTILINE,
)
"""A conditional jump of x86 as `objdump -d` prints it: address, bytes, target; with -r, its relocation."""


class Jump(msgspec.Struct, frozen=True, array_like=True):
    """A conditional jump.

    Args:
        address: Its address.
        taken: Where it leads if it is taken; 0 if that is not known.
        passed: The address of the next instruction.
    """

    address: int
    taken: int
    passed: int


class _Packed(msgspec.Struct, frozen=True):
    jumps: bytes


class Code:
    """The code of a file.

    Args:
        path: The file, which has the code.
        files: The paths of its source files.
        addresses: The addresses of the rows of its line tables, sorted.
        rows: For each, the number of its source file, its line and its flags; see `line_program`.
        jumps: Its conditional jumps, by address.
        sections: The numbers of its sections that have code, if it is relocatable.
        sizes: Their sizes in bytes.
    """

    def __init__(
        self,
        path: Path,
        *,
        files: list[str],
        addresses: array[int],
        rows: array[int],
        jumps: list[Jump],
        sections: dict[str, int],
        sizes: dict[int, int],
    ) -> None:
        self.path = path
        self.files = files
        self.addresses = addresses
        self.rows = rows
        self.jumps = jumps
        self.sections = sections
        self.sizes = sizes

    def file(self, row: int) -> str:
        """Return the path of the source file of a row."""
        return self.files[row >> FILE_SHIFT]


def read(path: Path, deadline: Deadline) -> Code:
    """Read a vmlinux or an unpacked module's file.

    Raises:
        UsageError: it has no DWARF that vmdebug reads, or is damaged.
        HostError: there are no binutils.
        DeadlineError: binutils took too long.
    """
    found = debuginfo.dwarf(path)
    if not found.version or found.split:
        raise UsageError(
            f"{path} has no debugging information, so coverage cannot name source lines",
            hint=debuginfo.WITHOUT_DWARF,
        )
    if found.compression == "zstd":
        raise UsageError(
            f"the debugging information of {path} is compressed with zstd, which coverage cannot read",
            hint=f"unpack it: objcopy --decompress-debug-sections {path}",
        )
    lines = Path(found.file) if found.file else path
    with elf.opened(lines) as stream:
        file = elf.parse(lines, stream)
        try:
            files, addresses, rows = _lines(file)
            relocatable = file["e_type"] == "ET_REL"
            sections = _sections(file) if relocatable else {}
            sizes = {each: file.get_section(each)["sh_size"] for each in sections.values()}
        except Exception as error:
            raise elf.damaged(lines, error) from error
    packed = cached(path, "conditional jumps", _Packed, lambda: _disassembled(path, sections, deadline))
    numbers = array("Q", zlib.decompress(packed.jumps))
    jumps = [Jump(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
    return Code(
        path, files=files, addresses=addresses, rows=rows, jumps=jumps, sections=sections, sizes=sizes
    )


def _lines(file: Any) -> tuple[list[str], array[int], array[int]]:
    data, relocated = _section(file, ".debug_line"), file["e_type"] == "ET_REL"
    strings = Strings(_section(file, ".debug_line_str"), _section(file, ".debug_str"))
    decoder = Decoder(data, strings, _Directories(file))
    sequences: list[Sequence] = []
    at = 0
    while at < len(data):
        found, at = decoder.decode(at)
        # The linker leaves the tables of code that it drops, at address 0.
        sequences += [each for each in found if relocated or each.addresses[0] >> 63]
    sequences.sort(key=lambda each: each.addresses[0])
    addresses, rows = array("Q"), array("Q")
    for each in sequences:
        addresses.extend(each.addresses)
        rows.extend(each.rows)
    return decoder.files, addresses, rows


class _Directories:
    """DW_AT_comp_dir by the offset of the unit's line table; read when it is needed first."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._known: dict[int, str] | None = None

    def __call__(self, at: int) -> str:
        if self._known is None:
            self._known = {}
            for unit in self._file.get_dwarf_info().iter_CUs():
                found = unit.get_top_DIE().attributes
                if "DW_AT_stmt_list" in found and "DW_AT_comp_dir" in found:
                    where = found["DW_AT_comp_dir"].value.decode(errors="replace")
                    self._known[found["DW_AT_stmt_list"].value] = where
        return self._known.get(at, "")


def _section(file: Any, name: str) -> bytes:
    section = file.get_section_by_name(name)
    if not elf.has_bytes(section):
        return b""
    data: bytes = section.data()
    relocations = file.get_section_by_name(f".rela{name}")
    if file["e_type"] != "ET_REL" or relocations is None:
        return data
    sizes = _RELOCATED_BYTES.get(file["e_machine"], {})
    symbols = file.get_section(relocations["sh_link"])
    places = [(each["st_value"], each["st_shndx"]) for each in symbols.iter_symbols()]
    patched = bytearray(data)
    for each in relocations.iter_relocations():
        size = sizes.get(each["r_info_type"], 0)
        value, section_number = places[each["r_info_sym"]]
        value += each["r_addend"]
        if size == 8:  # noqa: PLR2004 - an address of code
            number = section_number if isinstance(section_number, int) else 0
            value += (number if number < _SHN_LORESERVE else 0) << SECTION_SHIFT
        at = each["r_offset"]
        patched[at : at + size] = value.to_bytes(size, "little")
    return bytes(patched)


_SHF_EXECINSTR = 4


def _sections(file: Any) -> dict[str, int]:
    return {
        each.name: number
        for number, each in enumerate(file.iter_sections())
        if each["sh_flags"] & _SHF_EXECINSTR
    }


def _disassembled(path: Path, sections: dict[str, int], deadline: Deadline) -> _Packed:
    objdump = process.find("objdump", package="binutils")
    relocations = ["-r"] if sections else []
    text = process.run([objdump, "-d", *relocations, "--insn-width=16", path], deadline=deadline).stdout
    numbers = array("Q")
    for name, start, end in _parts(text):
        for jump in _jumps(text, start, end, sections, name):
            numbers.extend((jump.address, jump.taken, jump.passed))
    return _Packed(zlib.compress(numbers.tobytes(), 1))


def _parts(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the names of the sections in objdump's output, and where their code is in it."""
    heads = list(_SECTION.finditer(text))
    for head, after in zip(heads, [*heads[1:], None], strict=True):
        yield head[1], head.end(), after.start() if after else len(text)


def _jumps(text: str, start: int, end: int, sections: dict[str, int], name: str) -> Iterator[Jump]:
    base = sections.get(name, 0) << SECTION_SHIFT
    for found in _JUMP.finditer(text, start, end):
        address, code, target, symbol, addend = found.groups()
        at = base + int(address, 16)
        taken = base + int(target, 16)
        if symbol is not None:  # in another section; the operand is relative to its own end
            other = sections.get(symbol)
            taken = 0 if other is None else (other << SECTION_SHIFT) + int(addend or "0", 16) + 4
        yield Jump(at, taken, at + len(code) // 3)
