"""Searches the past of a replay: runs through windows of it and notes what is hit.

The breakpoints of a search are internal. They are made at the begin of each window, because GDB keeps
the value of a watched expression from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import gdb
import vmd_batch
import vmd_history
import vmd_waker
import vmd_windows
from vmd_windows import Hit, Scanned

STOPS = 64
"""After so many stops in a window, the end of its rest is searched first."""

_TELL_SECONDS = 2.0

Note = Callable[[], object]
"""Is called at a hit; None is no hit."""


class Trap:
    """What a search looks for: a place, or a watched expression.

    Args:
        number: The number in its hits.
        spec: A location or an expression.
        watch: Whether it is watched.
        note: See `Note`; its result is the hit's value.
    """

    def __init__(self, number: int, spec: str, *, watch: bool, note: Note) -> None:
        self.number, self.spec, self.watch, self.note = number, spec, watch, note


class _Spot(gdb.Breakpoint):
    """A trap in one window."""

    def __init__(self, trap: Trap, search: _Search) -> None:
        kind = gdb.BP_WATCHPOINT if trap.watch else gdb.BP_BREAKPOINT
        super().__init__(trap.spec, kind, internal=True)
        self.silent = True
        self.trap, self._search = trap, search
        if trap.watch and self.type != gdb.BP_HARDWARE_WATCHPOINT:
            self.delete()
            raise gdb.GdbError(f"{trap.spec} cannot be watched: it is not in memory, or too large")

    def stop(self) -> bool:
        """Note the hit, and stop."""
        self._search.note(self.trap)
        return True


class _Search:
    """One scan of a window.

    At a hit of a breakpoint, GDB would single-step off it. After a single step a replay may wait for ever, so
    it runs to the next position without breakpoints instead.
    """

    def __init__(self, traps: Sequence[Trap], limit: int | None) -> None:
        self.hits: list[Hit] = []
        self._stops = 0
        self._hit = False
        self._traps, self._limit = traps, limit

    def note(self, trap: Trap) -> None:
        """Note a hit."""
        self._hit = True
        self._stops += 1
        value = trap.note()
        if value is not None:
            self.hits.append(Hit(vmd_history.position(), trap.number, value))

    def run(self, begin: int, end: int) -> Scanned:
        """Run through the window; end early after many stops."""
        vmd_history.goto(begin)
        spots: list[_Spot] = []
        try:
            for trap in self._traps:
                spots += [_Spot(trap, self)]  # those that are made are deleted if one fails
            reached = begin
            while reached < end and (self._limit is None or self._stops < self._limit):
                self._off(spots)
                reached = self._through(min(reached + 1, end) if self._hit else end)
        finally:
            for each in spots:
                each.delete()
        return Scanned([each for each in self.hits if each.position < end or each.number < 0], reached)

    def _off(self, spots: Sequence[_Spot]) -> None:
        """Disable the breakpoints at the present instruction, which note a hit that GDB has not reported."""
        pc = gdb.newest_frame().pc()
        there = [each for each in spots if each.location == f"*{pc:#x}"]
        reported, self._hit = self._hit, bool(there)
        for each in spots:
            each.enabled = each not in there
        if there and not reported:
            for each in there:
                self.note(each.trap)

    def _through(self, end: int) -> int:
        """Run to a position or a hit, and return where the guest is.

        Raises:
            KeyboardInterrupt: the user stopped it.
        """
        self._hit = False
        reached = vmd_history.advance(end)
        if reached < end and not self._hit:
            raise KeyboardInterrupt
        return reached


def scan(traps: Sequence[Trap], begin: int, end: int, *, limit: int | None = None) -> Scanned:
    """Run from one position to another, and return the hits before the second."""
    with vmd_history.without_breakpoints(), vmd_waker.connected():
        return _Search(traps, limit).run(begin, end)


def last(traps: Sequence[Trap], position: int, *, before: int | None = None) -> Hit | None:
    """Return the last hit before a position, and leave the guest wherever the search has ended.

    Args:
        traps: What to look for.
        position: Where to begin.
        before: Consider only hits before this position; None: `position`.
    """
    told = Teller(position)
    vmd_history.keep(position - vmd_windows.NEAR[-1])
    starts = [each.position for each in vmd_history.snapshots()]
    for window in vmd_windows.backward(position, starts):
        told.at(window[1])
        found = vmd_windows.last(window, lambda begin, end: scan(traps, begin, end, limit=STOPS))
        if found is not None and found.position < (position if before is None else before):
            return found
    return None


def everything(traps: Sequence[Trap], windows: Iterable[vmd_windows.Window]) -> list[Hit]:
    """Return all hits in the windows."""
    hits: list[Hit] = []
    for begin, end in windows:
        hits += scan(traps, begin, end).hits
    return hits


class Teller:
    """Tells a person how far a search is, once it takes longer than two seconds."""

    def __init__(self, position: int) -> None:
        self._since, self._position, self._told = time.monotonic(), position, False

    def at(self, position: int) -> None:
        """Say where the search is."""
        if not self._told and time.monotonic() - self._since > _TELL_SECONDS:
            self._told = True
            vmd_batch.say(
                f"searching before instruction {self._position}, now at {position}; Ctrl-C ends the search"
            )
