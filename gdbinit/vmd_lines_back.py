"""Finds the positions of source lines, calls and instructions in the past of a replay."""

from __future__ import annotations

from typing import NamedTuple

import gdb
import vmd_batch
import vmd_history
import vmd_scan

_STEPS = (40, 400)
"""Instructions that `step` goes back and reads one by one, in order, before it goes over calls."""


class _Function(NamedTuple):
    """The function of the selected frame that is not inlined, and its frame's address."""

    begin: int
    end: int
    name: str
    base: int | None


def call() -> int | None:
    """Return the position of the call of the selected frame's function; None if it is not recorded."""
    frame = _physical(gdb.selected_frame())
    function = _function(frame)
    origin = vmd_history.position()
    trap = vmd_scan.Trap(1, f"*{function.begin:#x}", watch=False, note=lambda: _same(function) or None)
    hit = _last([trap], origin)
    return None if hit is None else max(hit - 1, 0)


def over() -> int | None:
    """Return the last position at which a line of this frame began, or its call; None if there is none."""
    frame = _physical(gdb.newest_frame())
    function = _function(frame)
    origin, pc = vmd_history.position(), frame.pc()
    if pc == function.begin:
        return max(origin - 1, vmd_history.begin())
    starts = _line_starts(function)
    traps = [
        vmd_scan.Trap(1, f"*{address:#x}", watch=False, note=lambda: _same(function) or None)
        for address in starts
    ]
    return _last(traps, origin)


def step() -> int | None:
    """Return the last position at which a line began, in this function or one that it called."""
    origin = vmd_history.position()
    for count in _STEPS:
        begin = max(origin - count, vmd_history.begin())
        found = _last_line(begin, origin)
        if found is not None:
            return found
        if begin == vmd_history.begin():
            return None
    vmd_history.goto(origin)
    return over()


def _last_line(begin: int, origin: int) -> int | None:
    with vmd_history.without_breakpoints():
        vmd_history.goto(begin)
        found = None
        while (now := vmd_history.position()) < origin:
            pc = gdb.newest_frame().pc()
            sal = gdb.find_pc_line(pc)
            if sal.line and sal.pc == pc:
                found = now
            vmd_history.quietly("stepi")
            if vmd_history.position() == now:  # under TCG, a step may end before its instruction
                vmd_history.run_to(now + 1)
    return found


def _last(traps: list[vmd_scan.Trap], origin: int) -> int | None:
    try:
        hit = vmd_scan.last(traps, origin)
    except BaseException:
        vmd_history.goto(origin)
        raise
    return None if hit is None else hit.position


def _function(frame: gdb.Frame) -> _Function:
    symbol = frame.function()
    block = None
    if symbol is not None:
        block = frame.block()
        while block is not None and (block.function is None or block.function.name != symbol.name):
            block = block.superblock
    if symbol is None or block is None:
        vmd_batch.fail(
            f"there is no function with debug information at {frame.pc():#x}\n"
            "go back by instructions: reverse-stepi; or to a breakpoint: reverse-continue"
        )
    # The entry of a function that is not contiguous is not where its block begins.
    there = symbol.value().address
    entry = block.start if there is None else int(there)
    return _Function(entry, block.end, symbol.name, _base(frame))


def _physical(frame: gdb.Frame) -> gdb.Frame:
    while frame.type() == gdb.INLINE_FRAME and (older := frame.older()) is not None:
        frame = older
    return frame


def _base(frame: gdb.Frame) -> int | None:
    """Return the stack pointer of the caller, which stays the same while a function runs."""
    older = _physical(frame).older()
    return None if older is None else int(_physical(older).read_register("sp")) & (2**64 - 1)


def _same(function: _Function) -> bool:
    """Whether the newest frame is the same call of the function."""
    return function.base is None or _base(gdb.newest_frame()) == function.base


def _line_starts(function: _Function) -> list[int]:
    table = gdb.find_pc_line(function.begin).symtab
    rows = [] if table is None else [each.pc for each in table.linetable()]
    inside = {pc for pc in rows if function.begin <= pc < function.end}
    return sorted(inside | {function.begin})
