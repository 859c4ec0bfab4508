"""Writes an ELF file of symbols at known addresses, for `add-symbol-file`. Does not import GDB.

64-bit little-endian; see elf(5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")

_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ET_EXEC = 2
_SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS = 2, 3, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_STB_GLOBAL = 1


class Area(NamedTuple):
    """A piece of memory, a section of the file.

    Args:
        address: Of its first byte.
        size: Its size in bytes.
        code: Whether it has instructions.
    """

    address: int
    size: int
    code: bool

    def has(self, address: int) -> bool:
        """Whether an address is in it."""
        return self.address <= address < self.address + self.size


class Symbol(NamedTuple):
    """A symbol.

    Args:
        name: Its name.
        address: Its address.
        size: Its size in bytes.
        kind: STT_OBJECT or STT_FUNC.
    """

    name: str
    address: int
    size: int
    kind: int


def content(machine: int, areas: Iterable[Area], symbols: Iterable[Symbol]) -> bytes:
    """Return the file's bytes.

    Args:
        machine: Its `e_machine`.
        areas: The sections; they have no bytes in the file.
        symbols: The symbols; those outside the areas are left out.
    """
    places = [each for each in areas if each.size]
    names, texts, entries = b"\0", b"\0", _SYMBOL.pack(0, 0, 0, 0, 0, 0)
    for symbol in symbols:
        number = next((n for n, each in enumerate(places, 1) if each.has(symbol.address)), 0)
        if number:
            info = _STB_GLOBAL << 4 | symbol.kind
            entries += _SYMBOL.pack(len(texts), info, 0, number, symbol.address, symbol.size)
            texts += symbol.name.encode() + b"\0"
    rows = [bytes(_SECTION.size)]
    for number, each in enumerate(places):
        flags = _SHF_ALLOC | (_SHF_EXECINSTR if each.code else _SHF_WRITE)
        rows.append(_SECTION.pack(len(names), _SHT_NOBITS, flags, each.address, 0, each.size, 0, 0, 1, 0))
        names += f".{'text' if each.code else 'data'}{number or ''}".encode() + b"\0"
    at = _HEADER.size
    link = len(rows) + 1
    rows.append(_SECTION.pack(len(names), _SHT_SYMTAB, 0, 0, at, len(entries), link, 1, 8, _SYMBOL.size))
    names += b".symtab\0"
    for name, size in (
        (b".strtab\0", len(texts)),
        (b".shstrtab\0", len(names) + len(b".strtab\0.shstrtab\0")),
    ):
        start = at + len(entries) + (0 if name == b".strtab\0" else len(texts))
        rows.append(_SECTION.pack(len(names), _SHT_STRTAB, 0, 0, start, size, 0, 0, 1, 0))
        names += name
    body = entries + texts + names
    body += bytes(-len(body) % 8)
    header = _HEADER.pack(
        _IDENT, _ET_EXEC, machine, 1, 0, 0, at + len(body), 0, _HEADER.size, 0, 0, _SECTION.size,
        len(rows), len(rows) - 1,
    )  # fmt: skip
    return header + body + b"".join(rows)
