"""The copy of a kernel stack at one instruction."""

from __future__ import annotations

import struct

import msgspec

from vmdebug.arch import Debug

_WORD = struct.Struct("<Q")


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of a stack, or of several that continue each other: an interrupt's and its task's.

    Args:
        pc: The address of the instruction.
        sp: The stack pointer there.
        bp: The frame pointer there.
        parts: The addresses of the copies, and their bytes.
    """

    pc: int
    sp: int
    bp: int
    parts: tuple[tuple[int, bytes], ...]

    def word(self, address: int) -> int | None:
        """Return the 8 bytes at an address; None if they were not copied."""
        for start, data in self.parts:
            at = address - start
            if at >= 0 and at + _WORD.size <= len(data):
                return int(_WORD.unpack_from(data, at)[0])
        return None


class Frame(msgspec.Struct, frozen=True):
    """The registers of one frame that its callers are found by.

    Args:
        pc: The address: of the next instruction to run in the frame.
        sp: The stack pointer.
        bp: The frame pointer.
        exact: Whether `pc` was interrupted there, or is the place of the hit; otherwise a call returns to it,
            and the instruction before it is the one that the frame executes.
    """

    pc: int
    sp: int
    bp: int
    exact: bool = False

    @property
    def at(self) -> int:
        """An address in the instruction that the frame executes."""
        return self.pc if self.exact else self.pc - 1


class Registers:
    """Reads a `struct pt_regs` in a copied stack.

    Args:
        debug: The facts about the architecture.
    """

    def __init__(self, debug: Debug) -> None:
        names = (debug.pc, debug.sp, debug.frame_pointer, debug.mode_register)
        self._pc, self._sp, self._bp, self._mode = (_WORD.size * debug.pt_regs.index(each) for each in names)
        self._user = debug.user_mode

    def frame(self, stack: Stack, at: int) -> Frame | None:
        """Return the interrupted frame; None if that was user space, or the registers were not copied."""
        pc, sp, mode = (stack.word(at + each) for each in (self._pc, self._sp, self._mode))
        if not pc or sp is None or mode is None or mode & self._user:  # a new kernel thread's are 0
            return None
        return Frame(pc, sp, stack.word(at + self._bp) or 0, exact=True)

    def interrupted(self, stack: Stack, at: int, bp: int) -> Frame | None:
        """Return the interrupted frame, if only the CPU's own part of the registers has been saved.

        Args:
            stack: The stack.
            at: Where the CPU has saved the program counter, and what follows it in `struct pt_regs`.
            bp: The frame pointer, which has not been saved.
        """
        begin = at - self._pc
        pc, sp, mode = (stack.word(begin + each) for each in (self._pc, self._sp, self._mode))
        if not pc or sp is None or mode is None or mode & self._user:  # a new kernel thread's are 0
            return None
        return Frame(pc, sp, bp, exact=True)
