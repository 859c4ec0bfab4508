"""One figure of a benchmark, and how two ways of doing a thing are timed against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from vmdebug import process

VMDEBUG = process.find("vmdebug", package="vmdebug")
"""The program as it is installed."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a benchmark found.

    Args:
        name: Key in latest.json.
        ours: What vmdebug takes, in `unit`.
        baseline: What the other way takes, in the same run, in `unit`.
        goal: The ratio ours / baseline that is aimed at.
        unit: Of both: "s", "ms".
        against: What the baseline is, for the table.
        more: Whether more is better, as of a rate: then the ratio is to be at least the goal, else at most.
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
        """Ours over the baseline."""
        return self.ours / self.baseline

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio >= self.goal if self.more else self.ratio <= self.goal


def in_turn(
    ours: Callable[[], float | None], baseline: Callable[[], float | None], *, rounds: int, warm_up: int = 1
) -> tuple[float, float]:
    """Return the median seconds of two ways, run A B A B so that a drifting machine is fair to both.

    Args:
        ours: Does it our way; may return the seconds itself, where not all of the call counts.
        baseline: Does it the other way.
        rounds: Counted runs of each.
        warm_up: Runs of each that are not counted.
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
