"""Reads section headers and notes of ELF files. Does not import GDB.

The host side reads ELF with pyelftools. GDB embeds the system's Python, which does not have it, and this
directory must work in any GDB. GDB's own Python API gives neither the sections of a file that is not loaded,
such as a kernel module whose section addresses `add-symbol-file` needs, nor notes in guest memory. So this
module has just that: 64-bit little-endian files; see elf(5).
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")
_SYMBOL = struct.Struct("<IBBHQQ")

_MAGIC = b"\x7fELF\x02\x01"
_SHT_NOBITS = 8
_SHF_ALLOC = 2
_NT_GNU_BUILD_ID = 3
_STT_ADDRESSES = (0, 1, 2)
"""STT_NOTYPE, STT_OBJECT, STT_FUNC."""


class Section(NamedTuple):
    """A section of an ELF file.

    Args:
        name: Its name.
        address: The address that it is linked to.
        offset: The offset of its bytes in the file.
        size: Its size in bytes.
        stored: Whether the file has its bytes.
        allocated: Whether it occupies memory.
    """

    name: str
    address: int
    offset: int
    size: int
    stored: bool
    allocated: bool = True


def sections(path: str) -> dict[str, Section]:
    """Return the sections of a 64-bit little-endian ELF file by name.

    Raises:
        ValueError: it is not one, or is damaged.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
        fields = _HEADER.unpack(header)
        offset, count, names_at = fields[6], fields[12], fields[13]
        rows = list(_SECTION.iter_unpack(_at(file, offset, count * _SECTION.size)))
        if names_at >= len(rows):
            raise ValueError(f"{path} is damaged: it has no section {names_at}, which should hold the names")
        names = _at(file, rows[names_at][4], rows[names_at][5])
    return {section.name: section for section in (_section(row, names) for row in rows)}


def read(path: str, address: int, size: int) -> bytes:
    """Return the bytes that the file has for a linked address, at most `size`; b"" if it has none.

    Raises:
        ValueError: the file is no ELF file, or is damaged.
        OSError: it cannot be read.
    """
    for section in sections(path).values():
        if section.stored and section.address <= address < section.address + section.size:
            start = address - section.address
            with Path(path).open("rb") as file:
                return _at(file, section.offset + start, min(size, section.size - start))
    return b""


def content(path: str, section: Section) -> bytes:
    """Return the bytes of a section.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return _at(file, section.offset, section.size)


def symbol(path: str, name: str) -> int | None:
    """Return the linked address of a function or variable; None if the file has no or several of that name.

    Raises:
        ValueError: the file is no ELF file, or is damaged.
        OSError: it cannot be read.
    """
    return _symbol(path, Path(path).stat().st_mtime_ns, name)


@functools.lru_cache
def _symbol(path: str, changed: int, name: str) -> int | None:
    rows, names, names_at = _symbols(path, changed)
    # The linker stores a name that another one ends with inside that one.
    places = set(_places(names, name.encode() + b"\0")).intersection(names_at)
    found = set()
    for row in _indices(names_at, places):
        _, info, _, _, address, _ = _SYMBOL.unpack_from(rows, row * _SYMBOL.size)
        if info & 0xF in _STT_ADDRESSES:
            found.add(address)
    return found.pop() if len(found) == 1 else None


def build_id(notes: bytes) -> str:
    """Return the GNU build-id in notes, in hex; "" if there is none.

    Args:
        notes: A `.notes` section, from a file or from memory. A kernel has other notes too, such as Xen's.
    """
    for owner, kind, description in _notes(notes):
        if owner == b"GNU" and kind == _NT_GNU_BUILD_ID:
            return description.hex()
    return ""


def _section(row: tuple[int, ...], names: bytes) -> Section:
    name = names[row[0] :].partition(b"\0")[0].decode(errors="replace")
    return Section(
        name,
        address=row[3],
        offset=row[4],
        size=row[5],
        stored=row[1] != _SHT_NOBITS,
        allocated=bool(row[2] & _SHF_ALLOC),
    )


def _at(file: IO[bytes], offset: int, size: int) -> bytes:
    end = os.fstat(file.fileno()).st_size
    if offset + size > end:
        raise ValueError(
            f"{file.name} is damaged: it should have {size} bytes at {offset}, and ends at {end}"
        )
    file.seek(offset)
    return file.read(size)


@functools.lru_cache(1)
def _symbols(path: str, _changed: int) -> tuple[bytes, bytes, list[int]]:
    """Return the rows of the symbol table, the names, and for each row where its name is in them.

    Args:
        path: The file.
        _changed: When it was changed; a later table is another one.
    """
    by_name = sections(path)
    if not by_name.keys() >= {".symtab", ".strtab"}:
        return b"", b"", []
    rows, names = (content(path, by_name[each]) for each in (".symtab", ".strtab"))
    whole = memoryview(rows)[: len(rows) // _SYMBOL.size * _SYMBOL.size]
    return rows, names, whole.cast("I")[:: _SYMBOL.size // 4].tolist()


def _indices(numbers: list[int], wanted: set[int]) -> Iterator[int]:
    """Yield where some numbers are in a list. A loop over the list itself would take milliseconds."""
    for number in wanted:
        at = -1
        for _ in range(numbers.count(number)):
            at = numbers.index(number, at + 1)
            yield at


def _places(data: bytes, wanted: bytes) -> Iterator[int]:
    """Yield where some bytes are in others."""
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + _NOTE.size <= len(data):
        name_size, size, kind = _NOTE.unpack_from(data, at)
        name_at = at + _NOTE.size
        description_at = name_at + _padded(name_size)
        end = description_at + size
        yield data[name_at : name_at + name_size].rstrip(b"\0"), kind, data[description_at:end]
        at = description_at + _padded(size)


def _padded(size: int) -> int:
    return (size + 3) & ~3
