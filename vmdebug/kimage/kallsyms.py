"""Reads kallsyms, the symbol table inside a kernel; the kernel in a boot image has no other one.

scripts/kallsyms.c of the kernel writes the tables into .rodata: names, compressed with a table of 256 tokens,
and addresses as offsets. Nothing points to the tables, so this module finds each of them by what it must
contain. If a kernel has the tables in an unknown order, it finds no symbols.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

_TOKENS = 256
_MARKED = 256
"""Each 256th name has a marker, which is the name's offset in the table of names."""

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
"""A part of the token table: names contain digits, and the token of a single character has its ASCII code."""

_LETTER = 1
"""Bytes of nm's letter for the type of a symbol, which comes before the name."""

_LONGEST_TOKENS = 16 << 10
_FIRST = ("_text", "_stext")
"""Symbols at the beginning of the kernel's text."""

_FEWEST, _MOST = 256, 4 << 20
"""How many symbols a kernel may have."""

_REACH = 32 << 20
"""How many bytes before the tokens the names may begin."""

_WORD = 1 << 64


class Symbol(NamedTuple):
    """A symbol.

    Args:
        name: Its name.
        kind: nm's letter for its type: "T".
        address: Its linked address.
    """

    name: str
    kind: str
    address: int


def symbols(rodata: bytes, address: int, text: int) -> list[Symbol]:
    """Return the symbols in the tables of kallsyms, in their order; none if there are no tables.

    Args:
        rodata: The kernel's `.rodata`, of a 64-bit little-endian kernel.
        address: Its linked address, a multiple of 8.
        text: The linked address of `.text`; the symbol `_text` or `_stext` must have it.
    """
    for tokens, begin, end in _token_tables(rodata):
        for at, count, names_at in _counts(rodata, begin):
            names = _names(rodata, names_at, count, tokens)
            for addresses in _addresses(rodata, address, (at, end), count) if names else ():
                found = [Symbol(name[1:], name[0], each) for name, each in zip(names, addresses, strict=True)]
                if any(each.name in _FIRST and each.address == text for each in found):
                    return found
    return []


def _token_tables(rodata: bytes) -> Iterator[tuple[list[bytes], int, int]]:
    """Yield the tokens, where their table begins, and where the table of their offsets ends."""
    at = rodata.find(_DIGITS)
    while at >= 0:
        begin = at
        for _ in range(ord("0")):
            begin = rodata.rfind(b"\0", 0, begin - 1) + 1
        tokens = rodata[begin : begin + _LONGEST_TOKENS].split(b"\0")[:_TOKENS]
        offsets = [0, *itertools.accumulate(len(token) + 1 for token in tokens)]
        if len(tokens) == _TOKENS and offsets[-1] < 1 << 16:
            index = struct.pack(f"<{_TOKENS}H", *offsets[:-1])
            found = rodata.find(index, begin + offsets[-1], begin + offsets[-1] + len(index) + 8)
            if found >= 0:
                yield tokens, begin, found + len(index)
        at = rodata.find(_DIGITS, at + 1)


def _counts(rodata: bytes, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield where the number of symbols may be, that number, and where the names after it would begin."""
    begin = max(0, end - _REACH) // 4 * 4
    numbers = struct.unpack_from(f"<{(end - begin) // 4}I", rodata, begin)
    for index in range(len(numbers) - 2, -1, -1):
        if _FEWEST <= numbers[index] <= _MOST:
            at = begin + index * 4
            # The tables are aligned to 8 bytes, or to 4.
            yield at, numbers[index], at + (4 if numbers[index + 1] else 8)


def _names(rodata: bytes, at: int, count: int, tokens: list[bytes]) -> list[str]:
    """Return the names at a place, each after nm's letter for it; none unless the right markers follow."""
    first, names, markers = at, [], []
    for number in range(count):
        if number % _MARKED == 0:
            markers.append(at - first)
            # Look for the markers early: other bytes may look like many names.
            if number == 2 * _MARKED and rodata.find(struct.pack("<3I", *markers), at) < 0:
                return []
        length = rodata[at] if at < len(rodata) else 0
        at += 1
        if length & 0x80:  # since Linux 6.1 (73bbb94466fd) long names have two bytes of length
            length = length & 0x7F | rodata[at] << 7
            at += 1
        name = b"".join([tokens[token] for token in rodata[at : at + length]])
        if len(name) < _LETTER + 1 or not (name[:_LETTER].isalpha() or name.startswith(b"?")):
            return []
        names.append(name.decode(errors="replace"))
        at += length
    proof = struct.pack(f"<{len(markers)}I", *markers)
    after = rodata[at : at + 8 + len(proof)]
    return names if any(after[pad:].startswith(proof) for pad in range(8)) else []


def _addresses(rodata: bytes, address: int, ends: tuple[int, int], count: int) -> Iterator[list[int]]:
    """Yield the addresses according to each known layout.

    - Before Linux 6.5 (404bad70fcf7) the offsets, and then their base, are before the number of symbols.
    - Since then, both are after the tokens.
    - Linux 7.2 has no base any more: each offset is relative to its own address.
    """
    count_at, tokens_end = ends
    size = -(-count * 4 // 8) * 8
    for begin in (count_at - 8 - size, -(-tokens_end // 8) * 8):
        if 0 <= begin <= len(rodata) - size - 8:
            (base,) = struct.unpack_from("<Q", rodata, begin + size)
            yield _moved(struct.unpack_from(f"<{count}i", rodata, begin), base)
    if tokens_end + size <= len(rodata):
        places = range(address + tokens_end, address + tokens_end + 4 * count, 4)
        offsets = struct.unpack_from(f"<{count}i", rodata, tokens_end)
        yield [(place + offset) % _WORD for place, offset in zip(places, offsets, strict=True)]


def _moved(offsets: tuple[int, ...], base: int) -> list[int]:
    # Until Linux 6.15 per-CPU symbols are absolute and have positive offsets; all others have negative ones.
    if sum(offset < 0 for offset in offsets) * 2 > len(offsets):
        return [offset if offset >= 0 else (base - 1 - offset) % _WORD for offset in offsets]
    return [(base + (offset & 0xFFFF_FFFF)) % _WORD for offset in offsets]
