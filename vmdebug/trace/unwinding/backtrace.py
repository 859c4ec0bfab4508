"""Makes backtraces of copied stacks, by the means that a kernel was built with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vmdebug.arch import Arch
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.syntax import NotCompiledError, TypeName
from vmdebug.trace.hit import Call
from vmdebug.trace.unwinding.frame_pointers import FramePointers
from vmdebug.trace.unwinding.orc import Layout, Orc
from vmdebug.trace.unwinding.places import Places
from vmdebug.trace.unwinding.stack import Frame, Registers, Stack

DEPTH = 64
"""The most frames of a backtrace; the same as GDB's collector records."""


class _Unwinder(Protocol):
    def caller(self, stack: Stack, frame: Frame, *, entry: bool = False) -> Frame | None:
        """Return the caller of a frame."""


class Backtraces:
    """Makes backtraces for a kernel.

    Args:
        kernel: The vmlinux; it must stay open.
        row: Its architecture.
        slide: How far KASLR has moved it.
    """

    def __init__(self, kernel: Kernel, row: Arch, slide: int) -> None:
        self._unwinder = _unwinder(kernel, row, slide)
        self._places = Places(kernel, slide)
        self._starts = {each.address + slide for each in kernel.functions}

    def of(self, stack: Stack) -> tuple[Call, ...]:
        """Return the frames of a stack, with inlined functions, innermost first."""
        found: list[Call] = []
        for frame in self.frames(stack):
            found += self._places.calls(frame.pc, frame.pc - frame.at)
            if len(found) >= DEPTH:
                break
        return tuple(found[:DEPTH])

    def frames(self, stack: Stack) -> Iterator[Frame]:
        """Yield the frames of a stack, innermost first."""
        frame: Frame | None = Frame(stack.pc, stack.sp, stack.bp, exact=True)
        entry = stack.pc in self._starts
        while frame is not None:
            yield frame
            before, frame = frame, self._unwinder.caller(stack, frame, entry=entry)
            entry = False
            if frame is not None and (frame.pc, frame.sp) == (before.pc, before.sp):
                return


def _unwinder(kernel: Kernel, row: Arch, slide: int) -> _Unwinder:
    registers = Registers(row.debug)
    table = kernel.orc
    if table is None:
        return FramePointers(registers)
    return Orc(table, layout=_layout(kernel), slide=slide, registers=registers)


def _layout(kernel: Kernel) -> Layout:
    """Return the layout of `struct orc_entry`; that of Linux 6.4 and later if the DWARF does not have it."""
    try:
        unit = kernel.unit_of("unwind_next_frame")
        entry = unit.type_named(TypeName(("struct", "orc_entry")))
    except NotCompiledError:
        return Layout(3, None)
    kind, end = entry.member("type"), entry.member("end")
    bits = kind[0].bits if kind is not None else None
    return Layout(bits or 3, None if end is None else 8 * (end[1] - 4) + end[0].shift)
