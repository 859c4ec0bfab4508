"""Writes a symbol table into an ELF file that has none: a 64-bit little-endian one; see elf(5)."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator, Sequence

from vmdebug.kimage.kallsyms import Symbol

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SECTIONS_AT, _COUNT, _NAMES = 6, 12, 13
"""Fields of the header: e_shoff, e_shnum, e_shstrndx."""

_OFFSET, _SIZE = 4, 5
"""Fields of a section: sh_offset, sh_size."""

_SHT_SYMTAB, _SHT_STRTAB = 2, 3
_SHF_ALLOC, _SHF_EXECINSTR = 2, 4
_SHN_ABS = 0xFFF1
_STB_LOCAL, _STB_GLOBAL = 0, 1
_STT_OBJECT, _STT_FUNC = 1, 2
_ADDED = b".symtab\0.strtab\0"


def with_symbols(file: bytes, symbols: Sequence[Symbol]) -> bytes:
    """Return an ELF file with these symbols.

    Args:
        file: The file.
        symbols: Its symbols. Each reaches to the next one in its section, as in the kernel's own messages.

    Raises:
        struct.error: the file is damaged.
        IndexError: as above.
    """
    header = list(_HEADER.unpack_from(file))
    rows = [
        list(_SECTION.unpack_from(file, header[_SECTIONS_AT] + number * _SECTION.size))
        for number in range(header[_COUNT])
    ]
    strings, entries, first_global = _table(rows, symbols)
    names = rows[header[_NAMES]]
    texts = file[names[_OFFSET] : names[_OFFSET] + names[_SIZE]] + _ADDED
    out = bytearray(file)
    places = []
    for part in (entries, strings, texts):
        out += bytes(-len(out) % 8)
        places.append(len(out))
        out += part
    symtab_name = len(texts) - len(_ADDED)
    strtab_name = symtab_name + _ADDED.index(b"\0") + 1
    names[_OFFSET : _SIZE + 1] = [places[2], len(texts)]
    link = len(rows) + 1
    rows += [
        [symtab_name, _SHT_SYMTAB, 0, 0, places[0], len(entries), link, first_global, 8, _SYMBOL.size],
        [strtab_name, _SHT_STRTAB, 0, 0, places[1], len(strings), 0, 0, 1, 0],
    ]
    out += bytes(-len(out) % 8)
    header[_SECTIONS_AT], header[_COUNT] = len(out), len(rows)
    out += b"".join(_SECTION.pack(*row) for row in rows)
    _HEADER.pack_into(out, 0, *header)
    return bytes(out)


def _table(rows: list[list[int]], symbols: Sequence[Symbol]) -> tuple[bytes, bytes, int]:
    """Return the names, the entries, and the index of the first global one: local ones come first."""
    strings = bytearray(b"\0")
    entries: list[list[bytes]] = [[_SYMBOL.pack(0, 0, 0, 0, 0, 0)], []]
    for symbol, section, size in _placed(rows, symbols):
        code = section != _SHN_ABS and rows[section][2] & _SHF_EXECINSTR
        bind = _STB_LOCAL if symbol.kind.islower() else _STB_GLOBAL
        info = bind << 4 | (_STT_FUNC if code else _STT_OBJECT)
        entries[bind].append(_SYMBOL.pack(len(strings), info, 0, section, symbol.address, size))
        strings += symbol.name.encode() + b"\0"
    return bytes(strings), b"".join(entries[0] + entries[1]), len(entries[0])


def _placed(rows: list[list[int]], symbols: Sequence[Symbol]) -> Iterator[tuple[Symbol, int, int]]:
    """Yield each symbol by address, with the number of its section, and its size."""
    spans = sorted(
        (row[3], row[3] + row[_SIZE], number)
        for number, row in enumerate(rows)
        if row[2] & _SHF_ALLOC and row[_SIZE]
    )
    starts = [start for start, _, _ in spans]
    ordered = sorted(symbols, key=lambda symbol: symbol.address)
    addresses = [symbol.address for symbol in ordered]
    for symbol in ordered:
        index = bisect.bisect_right(starts, symbol.address) - 1
        # The end of a section has symbols too.
        if index < 0 or symbol.address > spans[index][1]:
            yield symbol, _SHN_ABS, 0
            continue
        _, end, number = spans[index]
        later = bisect.bisect_right(addresses, symbol.address)
        reaches = min(addresses[later], end) if later < len(addresses) else end
        yield symbol, number, reaches - symbol.address
