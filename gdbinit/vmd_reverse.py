"""GDB's reverse commands in a replay: back to the last hit, line, instruction or call.

They are done with snapshots and forward runs; see `vmd_history` for why not by QEMU.
"""

from __future__ import annotations

import gdb
import vmd_batch
import vmd_history
import vmd_lines_back
import vmd_scan
from vmd_windows import Hit

_BREAKPOINTS = (gdb.BP_BREAKPOINT, getattr(gdb, "BP_HARDWARE_BREAKPOINT", gdb.BP_BREAKPOINT))
_WATCHPOINTS = (gdb.BP_WATCHPOINT, gdb.BP_HARDWARE_WATCHPOINT)

BEGIN = "begin"
"""The reason of a stop where the recording begins."""


class Arrived:
    """Where a reverse command has ended.

    Args:
        reason: MI's word for it: "breakpoint-hit", "watchpoint-trigger", "end-stepping-range", or `BEGIN`.
        number: The breakpoint that was hit, or 0.
        value: A watchpoint's old and new value.
    """

    def __init__(self, reason: str, number: int = 0, value: object = None) -> None:
        self.reason, self.number, self.value = reason, number, value


def back() -> Arrived:
    """Go back to the last hit of a breakpoint or watchpoint that is enabled, or to the begin.

    Only the user's own count: GDB lists internal ones that Python has made, for traces and module symbols.
    """
    origin = vmd_history.position()
    traps = [trap for each in gdb.breakpoints() if each.enabled and each.visible for trap in _traps(each)]
    if not traps:
        vmd_batch.fail(
            "no breakpoint is set to go back to\n"
            "set one, or go to a position: vmd-goto; to the begin of the recording: vmd-goto start"
        )
    hit = _searched(traps, origin)
    if hit is None:
        return begin()
    watch = hit.number < 0
    vmd_history.goto(hit.position - watch)
    number = abs(hit.number)
    _forget_temporary(number)
    return Arrived("watchpoint-trigger" if watch else "breakpoint-hit", number, hit.value)


def stepi(count: int = 1) -> Arrived:
    """Go back by instructions."""
    origin = vmd_history.position()
    if origin == vmd_history.begin():
        return begin()
    vmd_history.goto_again(max(origin - count, vmd_history.begin()))
    return Arrived("end-stepping-range")


def line(*, into: bool) -> Arrived:
    """Go back to the begin of a line: of this one, or of the one before it.

    Args:
        into: Whether to stop in functions that it called.
    """
    return _moved(vmd_lines_back.step() if into else vmd_lines_back.over())


def finish() -> Arrived:
    """Go back to where the selected frame's function was called."""
    return _moved(vmd_lines_back.call())


def begin() -> Arrived:
    """Go to where the recording begins."""
    vmd_history.goto(vmd_history.begin())
    return Arrived(BEGIN)


def _moved(position: int | None) -> Arrived:
    if position is None:
        return begin()
    vmd_history.goto_again(position)
    return Arrived("end-stepping-range")


def _searched(traps: list[vmd_scan.Trap], origin: int) -> Hit | None:
    try:
        return vmd_scan.last(traps, origin)
    except BaseException:
        vmd_history.goto(origin)
        raise


def _traps(each: gdb.Breakpoint) -> list[vmd_scan.Trap]:
    """Return what finds the hits of a user's breakpoint; watchpoints have negative numbers."""
    if each.type in _BREAKPOINTS:
        return [
            vmd_scan.Trap(each.number, f"*{address:#x}", watch=False, note=_condition(each))
            for address in _addresses(each)
        ]
    if each.type in _WATCHPOINTS:
        return [
            vmd_scan.Trap(-each.number, watched(each.expression or ""), watch=True, note=_condition(each))
        ]
    vmd_batch.say(f"breakpoint {each.number} is not considered: only breakpoints and write watchpoints are")
    return []


def _addresses(each: gdb.Breakpoint) -> list[int]:
    if hasattr(each, "locations"):
        return [there.address for there in each.locations if there.enabled and there.address is not None]
    return [there.pc for there in gdb.decode_line(each.location or "")[1] or ()]


def _condition(each: gdb.Breakpoint) -> vmd_scan.Note:
    """Return what says whether a breakpoint would stop; an error in its condition stops, as in GDB."""

    def stops() -> object:
        if each.condition is None:
            own = getattr(each, "stop", None)
            return True if own is None or own() else None
        try:
            return True if gdb.parse_and_eval(each.condition) else None
        except gdb.error as error:
            return str(error)

    return stops


def watched(expression: str) -> str:
    """Return an expression that means the same memory in every frame.

    Raises:
        gdb.GdbError: the expression is not in memory.
    """
    expression = expression.removeprefix("-location ").removeprefix("-l ")
    value = gdb.parse_and_eval(expression)
    if value.address is None:
        raise gdb.GdbError(f"{expression} is not in memory, so that its writes cannot be found")
    size = value.type.strip_typedefs().sizeof
    address = int(value.address)
    kinds = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int", 8: "unsigned long"}
    if size in kinds:
        return f"*({kinds[size]} *) {address:#x}"
    return f"*(unsigned char (*)[{size}]) {address:#x}"


def _forget_temporary(number: int) -> None:
    for each in gdb.breakpoints():
        if each.number == number and each.temporary:
            each.delete()
