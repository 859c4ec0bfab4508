"""Finds callers by frame pointers, in kernels with CONFIG_FRAME_POINTER.

See `unwind_next_frame` of arch/x86/kernel/unwind_frame.c: an entry from an exception stores the address of
its `struct pt_regs`, plus 1, as the frame pointer.
"""

from __future__ import annotations

from vmdebug.trace.unwinding.stack import Frame, Registers, Stack


class FramePointers:
    """Finds the caller of a frame.

    Args:
        registers: Reads `struct pt_regs`.
    """

    def __init__(self, registers: Registers) -> None:
        self._registers = registers

    def caller(self, stack: Stack, frame: Frame, *, entry: bool = False) -> Frame | None:
        """Return the caller of a frame; None if it is the last one, or the stack was not copied so far.

        Args:
            stack: The copied stack.
            frame: The frame.
            entry: Whether the frame is at the first instruction of its function, which has made no frame yet.
        """
        if entry:
            pc = stack.word(frame.sp)
            return None if not pc else Frame(pc, frame.sp + 8, frame.bp)
        if frame.bp & 1:
            return self._registers.frame(stack, frame.bp - 1)
        bp, pc = stack.word(frame.bp), stack.word(frame.bp + 8)
        return None if bp is None or not pc else Frame(pc, frame.bp + 16, bp)
