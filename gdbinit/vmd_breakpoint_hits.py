"""Which breakpoints caused a stop: if several are at one address, MI's record names only one.

GDB's list of breakpoints in a stop event also has those whose condition was false or whose ignore count was
not used up. A breakpoint caused the stop if its hit count grew by more than its ignore count shrank.
"""

from __future__ import annotations

from collections.abc import Iterable

import gdb

Counts = tuple[int, int]
"""Hit count and ignore count."""


class Hits:
    """Tracks the counts of all breakpoints from stop to stop."""

    def __init__(self) -> None:
        self.last: tuple[int, ...] = ()
        """Numbers of the breakpoints that caused the last stop."""
        self._before: dict[int, Counts] = {}

    def stopped(self, event: gdb.StopEvent) -> None:
        """Handle a stop."""
        there = event.breakpoints if isinstance(event, gdb.BreakpointEvent) else ()
        self.last = tuple(each.number for each in there if each.number > 0 and self._was_hit(each))
        self._note(gdb.breakpoints())

    def changed(self, breakpoint_: gdb.Breakpoint) -> None:
        """Record a new or changed breakpoint, unless a hit changed it: `stopped` compares those."""
        if self._before.get(breakpoint_.number, (0, 0))[0] == breakpoint_.hit_count:
            self._note([breakpoint_])

    def _was_hit(self, breakpoint_: gdb.Breakpoint) -> bool:
        hits, ignored = self._before.get(breakpoint_.number, (0, 0))
        return breakpoint_.hit_count - hits > ignored - breakpoint_.ignore_count

    def _note(self, all_: Iterable[gdb.Breakpoint]) -> None:
        self._before.update({each.number: (each.hit_count, each.ignore_count) for each in all_})


HITS = Hits()
gdb.events.stop.connect(HITS.stopped)
gdb.events.breakpoint_created.connect(HITS.changed)
gdb.events.breakpoint_modified.connect(HITS.changed)


def hit() -> dict[str, object]:
    """`-vmd-hit`: the numbers of all breakpoints that caused the last stop."""
    return {"numbers": " ".join(map(str, HITS.last))}
