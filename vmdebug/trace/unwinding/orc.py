"""Finds callers with the ORC tables of x86's kernels.

See Documentation/arch/x86/orc-unwinder.rst, and `unwind_next_frame` of arch/x86/kernel/unwind_orc.c.
"""

from __future__ import annotations

import bisect
import struct

import msgspec

from vmdebug.trace.expressions.orc_table import OrcTable
from vmdebug.trace.unwinding.stack import Frame, Registers, Stack

_ENTRY = struct.Struct("<hhH")
_PREVIOUS, _BP, _SP, _BP_INDIRECT, _SP_INDIRECT = 1, 4, 5, 8, 9
"""ORC_REG_… of arch/x86/include/asm/orc_types.h."""


class Layout(msgspec.Struct, frozen=True):
    """The last two bytes of a `struct orc_entry`, which differ between kernels.

    Args:
        type_bits: The size of `type` in bits: 2 until Linux 6.3, 3 since 6.4 (fb799447ae29).
        end_bit: The bit of `end`; None in kernels that have a type for it.
    """

    type_bits: int
    end_bit: int | None

    @property
    def call(self) -> int:
        """The type of a frame that a call has made."""
        return 2 if self.end_bit is None else 0


class Orc:
    """Finds callers with a table.

    Args:
        table: The table.
        layout: The layout of its entries.
        slide: How far KASLR has moved the kernel.
        registers: Reads `struct pt_regs`.
    """

    def __init__(self, table: OrcTable, *, layout: Layout, slide: int, registers: Registers) -> None:
        self._table = table
        self._slide = slide
        self._layout = layout
        self._registers = registers

    def caller(self, stack: Stack, frame: Frame, *, entry: bool = False) -> Frame | None:  # noqa: ARG002
        """Return the caller of a frame; None if it is the last one, or is not known; see `FramePointers`."""
        number = bisect.bisect_right(self._table.addresses, frame.at - self._slide) - 1
        if number < 0:
            return None
        sp_offset, bp_offset, bits = _ENTRY.unpack_from(self._table.entries, number * _ENTRY.size)
        sp = self._stack_pointer(stack, frame, bits & 0xF, sp_offset)
        kind = bits >> 8 & ((1 << self._layout.type_bits) - 1)
        if sp is None:
            return None
        if kind == self._layout.call + 1:
            return self._registers.frame(stack, sp)
        bp = _frame_pointer(stack, frame, sp, bits >> 4 & 0xF, bp_offset)
        if kind == self._layout.call + 2:
            return self._registers.interrupted(stack, sp, bp)
        last = self._layout.end_bit is not None and bits >> self._layout.end_bit & 1
        pc = stack.word(sp - 8)
        if kind != self._layout.call or last or not pc:
            return None
        return Frame(pc, sp, bp)

    def _stack_pointer(self, stack: Stack, frame: Frame, register: int, offset: int) -> int | None:
        if register == _SP:
            return frame.sp + offset
        if register == _BP:
            return frame.bp + offset
        if register == _BP_INDIRECT:
            return stack.word(frame.bp + offset)
        if register == _SP_INDIRECT:
            found = stack.word(frame.sp)
            return None if found is None else found + offset
        return None


def _frame_pointer(stack: Stack, frame: Frame, sp: int, register: int, offset: int) -> int:
    if register == _PREVIOUS:
        return stack.word(sp + offset) or 0
    if register == _BP:
        return stack.word(frame.bp + offset) or 0
    return frame.bp
