"""A figure of a benchmark, and the function that times two ways of doing something."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from vmdebug import process

VMDEBUG = process.find("vmdebug", package="vmdebug")
"""The installed program."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The result of a benchmark.

    Args:
        name: Its key in latest.json.
        ours: The value for vmdebug, in `unit`.
        baseline: The value for the baseline in the same run, in `unit`.
        goal: The goal for the ratio ours / baseline.
        unit: The unit of both: "s", "ms".
        against: The name of the baseline, for the table.
        more: Whether more is better, as for a rate: the ratio must then be at least the goal, otherwise at
            most.
    """

    name: str
    ours: float
    baseline: float
    goal: float
    unit: str
    against: str
    more: bool = False

    @property
    def ratio(self) -> float:
        """The ratio ours / baseline."""
        return self.ours / self.baseline

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.ratio >= self.goal if self.more else self.ratio <= self.goal


def in_turn(
    ours: Callable[[], float | None], baseline: Callable[[], float | None], *, rounds: int, warm_up: int = 1
) -> tuple[float, float]:
    """Return the median seconds of two functions, run alternately so that drift affects both equally.

    Args:
        ours: Does it with vmdebug. It may return the seconds to count, if that is not the whole call.
        baseline: Does it the other way.
        rounds: How many runs of each to count.
        warm_up: How many runs of each to do first, without counting them.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for each in range(warm_up + rounds):
        for way, into in zip((ours, baseline), times, strict=True):
            begin = time.perf_counter()
            took = way()
            elapsed = time.perf_counter() - begin
            if each >= warm_up:
                into.append(elapsed if took is None else took)
    return statistics.median(times[0]), statistics.median(times[1])
