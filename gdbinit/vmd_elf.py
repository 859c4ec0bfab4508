"""Reads section headers and notes of ELF files. Does not import GDB.

The host side reads ELF with pyelftools. GDB embeds the system's Python, which does not have it, and this
directory must work in any GDB. GDB's own Python API gives neither the sections of a file that is not loaded,
such as a kernel module whose section addresses `add-symbol-file` needs, nor notes in guest memory. So this
module has just that: 64-bit little-endian files; see elf(5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")

_MAGIC = b"\x7fELF\x02\x01"
_SHT_NOBITS = 8
_SHF_ALLOC = 2
_NT_GNU_BUILD_ID = 3


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
        ValueError: it is not one.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
        fields = _HEADER.unpack(header)
        offset, count, names_at = fields[6], fields[12], fields[13]
        file.seek(offset)
        rows = list(_SECTION.iter_unpack(file.read(count * _SECTION.size)))
        file.seek(rows[names_at][4])
        names = file.read(rows[names_at][5])
    return {section.name: section for section in (_section(row, names) for row in rows)}


def read(path: str, address: int, size: int) -> bytes:
    """Return the bytes that the file has for a linked address; b"" if it has none."""
    for section in sections(path).values():
        if section.stored and section.address <= address < section.address + section.size:
            with Path(path).open("rb") as file:
                return _at(file, section.offset + address - section.address, size)
    return b""


def content(path: str, section: Section) -> bytes:
    """Return the bytes of a section."""
    with Path(path).open("rb") as file:
        return _at(file, section.offset, section.size)


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
    start = row[0]
    name = names[start : names.index(b"\0", start)].decode(errors="replace")
    return Section(
        name,
        address=row[3],
        offset=row[4],
        size=row[5],
        stored=row[1] != _SHT_NOBITS,
        allocated=bool(row[2] & _SHF_ALLOC),
    )


def _at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


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
