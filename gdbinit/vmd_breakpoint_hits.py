"""Which breakpoints the guest has stopped at: MI's record names one of those that are in one place.

GDB's own list of a stop has also those whose condition did not hold, or that passed over it. What
tells is that a hit was counted, and not taken from the ignore count.
"""

from __future__ import annotations

from collections.abc import Iterable

import gdb

Counts = tuple[int, int]
"""Hits so far, and how many are still to be passed over."""


class Hits:
    """Follows the counts of all breakpoints from stop to stop."""

    def __init__(self) -> None:
        self.last: tuple[int, ...] = ()
        """The numbers of those that the last stop was for."""
        self._before: dict[int, Counts] = {}

    def stopped(self, event: gdb.StopEvent) -> None:
        """Take note of a stop."""
        there = event.breakpoints if isinstance(event, gdb.BreakpointEvent) else ()
        self.last = tuple(each.number for each in there if each.number > 0 and self._was_hit(each))
        self._note(gdb.breakpoints())

    def changed(self, breakpoint_: gdb.Breakpoint) -> None:
        """Take note of a new breakpoint, or a change; what a hit changes is left for the stop."""
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
    """`-vmd-hit`: the numbers of all breakpoints that the last stop was for."""
    return {"numbers": " ".join(map(str, HITS.last))}
