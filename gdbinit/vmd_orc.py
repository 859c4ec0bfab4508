"""Finds callers with the ORC table of a module. Does not import GDB.

See Documentation/arch/x86/orc-unwinder.rst, and `unwind_next_frame` of arch/x86/kernel/unwind_orc.c.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable
from typing import NamedTuple

_ENTRY = struct.Struct("<hhH")
_PREVIOUS_SP, _BP, _SP = 1, 4, 5
"""ORC_REG_… of arch/x86/include/asm/orc_types.h."""

ENTRY_SIZE = _ENTRY.size


class Frame(NamedTuple):
    """The registers of a frame that its caller is found with."""

    pc: int
    sp: int
    bp: int


class Table(NamedTuple):
    """A table.

    Args:
        addresses: The addresses from which the entries hold, ascending.
        entries: The entries, each of `ENTRY_SIZE` bytes.
        type_at: The first bit of `type` in an entry's last two bytes.
        type_bits: The number of its bits: 2 until Linux 6.3, 3 since 6.4 (fb799447ae29).
        call: The type of a frame that a call has made.
    """

    addresses: tuple[int, ...]
    entries: bytes
    type_at: int
    type_bits: int
    call: int


def addresses(places: bytes, at: int) -> tuple[int, ...]:
    """Return the addresses of entries.

    Args:
        places: `orc_unwind_ip`: offsets, each relative to its own address.
        at: The address of the first one.
    """
    offsets = struct.unpack(f"<{len(places) // 4}i", places)
    return tuple(at + 4 * number + offset for number, offset in enumerate(offsets))


def caller(table: Table, frame: Frame, word: Callable[[int], int]) -> Frame | None:
    """Return the caller of a frame; None if the table does not know it.

    Args:
        table: The table.
        frame: The frame, with an address inside the instruction that it executes.
        word: Reads a word of the stack.
    """
    number = bisect.bisect_right(table.addresses, frame.pc) - 1
    if number < 0:
        return None
    sp_offset, bp_offset, bits = _ENTRY.unpack_from(table.entries, number * ENTRY_SIZE)
    base = {_SP: frame.sp, _BP: frame.bp}.get(bits & 0xF)
    if base is None or bits >> table.type_at & ((1 << table.type_bits) - 1) != table.call:
        return None
    sp = base + sp_offset
    saved = {_PREVIOUS_SP: sp, _BP: frame.bp}.get(bits >> 4 & 0xF)
    bp = frame.bp if saved is None else word(saved + bp_offset)
    return Frame(word(sp - 8), sp, bp)
