"""Where to search, when the guest's past is searched backwards; pure.

Positions are counts of executed instructions. A replay only runs forward, from a snapshot, so a search goes
through windows, the newest first. The first ones are small: where hits are frequent, the last one is near.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

NEAR = (1 << 16, 1 << 21)
"""Instructions before the present position in the first windows."""

Window = tuple[int, int]
"""The position where it begins, and the one before which it ends."""


class Hit(NamedTuple):
    """A hit of a breakpoint or watchpoint.

    Args:
        position: Instructions executed before it. A watchpoint's hit is after the instruction that writes.
        number: Which breakpoint.
        value: What was noted there.
    """

    position: int
    number: int
    value: object = None


class Scanned(NamedTuple):
    """What a scan of a window found: the hits in order, and the position that it reached."""

    hits: Sequence[Hit]
    reached: int


def backward(position: int, starts: Sequence[int], near: Sequence[int] = NEAR) -> Iterator[Window]:
    """Yield the windows before a position, the newest first, together without a gap.

    Args:
        position: Where to begin.
        starts: The positions of the snapshots, in order; the first is where the recording begins.
        near: The sizes of the first windows, counted from `position`.
    """
    end = position
    sizes = iter(near)
    first = starts[0] if starts else 0
    while end > first:
        start = starts[max(bisect.bisect_left(starts, end) - 1, 0)]
        size = next(sizes, None)
        begin = start if size is None else max(start, position - size)
        if begin < end:
            yield begin, end
            end = begin


def last(window: Window, scan: Callable[[int, int], Scanned]) -> Hit | None:
    """Return the last hit in a window; None if there is none.

    A scan may end early, when it has stopped too often: then the later half of the rest is scanned first, and
    what is before only if there is no hit in it.

    Args:
        window: Where to search.
        scan: Scans from a position to another, from the start on.
    """
    begin, end = window
    found = scan(begin, end)
    if found.reached < end:
        middle = (found.reached + end + 1) // 2
        for later in ((middle, end), (found.reached, middle)):
            if later[0] < later[1] and (later != window) and (hit := last(later, scan)) is not None:
                return hit
    return found.hits[-1] if found.hits else None
