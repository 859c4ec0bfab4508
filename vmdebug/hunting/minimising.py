"""Simplifies a schedule that fails: fewer knobs, then as few disturbances as possible."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from vmdebug.hunting import schedule as schedules
from vmdebug.hunting.schedule import FOREVER, Schedule

LARGEST = 1 << 14
"""Disturbances of a run that are looked at; more do not fit into one."""

Fails = Callable[[Schedule], bool]


def minimise(schedule: Schedule, fails: Fails) -> Schedule:
    """Return the simplest schedule that still fails, after some 30 runs at most.

    Args:
        schedule: A schedule that fails.
        fails: Runs a schedule, and returns whether it fails in the same way.
    """
    again = True
    while again:
        again = False
        for simpler in schedules.simpler(schedule):
            if fails(simpler):
                schedule, again = simpler, True
                break
    if not schedule.gap:
        return schedule
    count = _smallest(
        1, LARGEST, lambda count: fails(msgspec.structs.replace(schedule, count=count)), default=FOREVER
    )
    schedule = msgspec.structs.replace(schedule, count=count)
    if count == FOREVER:
        return schedule
    end = count

    def without(first: int) -> Schedule:
        return msgspec.structs.replace(schedule, first=first, count=end - first)

    fewest = _smallest(1, end, lambda left: fails(without(end - left)), default=end)
    return without(end - fewest)


def _smallest(low: int, high: int, holds: Callable[[int], bool], *, default: int) -> int:
    """Return a number for which a condition holds, and not for smaller ones that were tried; by bisection."""
    if not holds(high):
        return default
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high
