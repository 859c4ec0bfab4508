"""Callers in copied stacks, by frame pointers and by ORC tables."""

from __future__ import annotations

import struct

import pytest

from vmdebug import arch
from vmdebug.trace.expressions.orc_table import of_sections
from vmdebug.trace.unwinding.frame_pointers import FramePointers
from vmdebug.trace.unwinding.orc import Layout, Orc
from vmdebug.trace.unwinding.stack import Frame, Registers, Stack

DEBUG = arch.by_name("x86_64").debug
REGISTERS = Registers(DEBUG)
SP = 0xFFFF_C900_0000_0000


def stack(*words: int, at: int = SP) -> Stack:
    return Stack(pc=0x1000, sp=at, bp=0, parts=((at, struct.pack(f"<{len(words)}Q", *words)),))


def saved(**values: int) -> list[int]:
    return [values.get(name, 0) for name in DEBUG.pt_regs]


def test_frame_pointers() -> None:
    unwinder = FramePointers(REGISTERS)
    # The return address; then a frame, whose frame pointer is that of interrupted registers.
    words = [0x2000, SP + 25, 0x3000, *saved(rip=0x4000, rsp=SP + 0x999, rbp=7, cs=0x10)]
    copied = stack(*words)
    first = unwinder.caller(copied, Frame(0x1000, SP, SP + 8, exact=True), entry=True)
    assert first == Frame(0x2000, SP + 8, SP + 8)
    second = unwinder.caller(copied, first)
    assert second == Frame(0x3000, SP + 24, SP + 25)
    assert unwinder.caller(copied, second) == Frame(0x4000, SP + 0x999, 7, exact=True)


@pytest.mark.parametrize("registers", [{"rip": 0x4000, "cs": 0x33}, {"cs": 0x10}])
def test_the_last_frame_was_entered_from_user_space_or_is_a_new_thread(registers: dict[str, int]) -> None:
    copied = stack(*saved(rsp=1, **registers))
    assert FramePointers(REGISTERS).caller(copied, Frame(0x2000, SP, SP + 1)) is None


def test_a_stack_that_was_not_copied_to_its_end() -> None:
    assert FramePointers(REGISTERS).caller(stack(1), Frame(0x2000, SP, SP)) is None


def orc(layout: Layout, *entries: tuple[int, int, int, int, int]) -> Orc:
    """Return tables with an entry every 16 bytes from 0x1000: sp register, offset, bp ones, the last bits."""
    at = 0x8000
    addresses = b"".join(struct.pack("<i", 0x1000 + 16 * n - (at + 4 * n)) for n in range(len(entries)))
    packed = b"".join(
        struct.pack("<hhH", sp_offset, bp_offset, sp | bp << 4 | kind << 8)
        for sp, sp_offset, bp, bp_offset, kind in entries
    )
    return Orc(of_sections(addresses, at, packed), layout=layout, slide=0, registers=REGISTERS)


NEW, OLD = Layout(3, None), Layout(2, 2 + 8)


@pytest.mark.parametrize(("layout", "call"), [(NEW, 2), (OLD, 0)])
def test_orc_calls_and_interrupts(layout: Layout, call: int) -> None:
    tables = orc(
        layout,
        (5, 8, 0, 0, call),  # before `push %rbp`
        (4, 16, 1, -16, call),  # after `mov %rsp,%rbp`
        (5, 0, 0, 0, call + 1),  # struct pt_regs
        (5, 0, 0, 0, call + 2),  # what the CPU has pushed
    )
    copied = stack(
        0x1011, SP + 0x500, 0x1021, *saved(rip=0x1030, rsp=SP + 192, cs=0x10), 0x1000, 0x10, 0, 9, 0
    )
    first = tables.caller(copied, Frame(0x1000, SP, SP + 8, exact=True))
    assert first == Frame(0x1011, SP + 8, SP + 8)
    second = tables.caller(copied, first)
    assert second == Frame(0x1021, SP + 24, SP + 0x500)
    third = tables.caller(copied, second)
    assert third == Frame(0x1030, SP + 192, 0, exact=True)
    assert tables.caller(copied, third) == Frame(0x1000, 9, 0, exact=True)


@pytest.mark.parametrize("entry", [(0, 0, 0, 0, 2), (5, 8, 0, 0, 1)])
def test_orc_ends(entry: tuple[int, int, int, int, int]) -> None:
    assert orc(NEW, entry).caller(stack(0x1001), Frame(0x1000, SP, 0, exact=True)) is None
    assert orc(OLD, (5, 8, 0, 0, 4)).caller(stack(0x1001), Frame(0x1000, SP, 0, exact=True)) is None
