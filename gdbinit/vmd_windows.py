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

_GROWTH = 4
"""How much longer each piece before the end is than the one after it."""

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

    A scan may end early, when it has stopped too often. Then the end of the rest is scanned first, half as
    long as what was scanned, and so probably with half as many stops; if there is no hit, longer and longer
    pieces before.

    Args:
        window: Where to search.
        scan: Scans from a position to another, from the start on.
    """
    begin, end = window
    found = scan(begin, end)
    size = max((found.reached - begin) // 2, 1)
    while end > found.reached:
        start = max(found.reached, end - size)
        if (start, end) != window and (hit := last((start, end), scan)) is not None:
            return hit
        end, size = start, _GROWTH * size
    return found.hits[-1] if found.hits else None
