"""The failure rate of a hunt, with its confidence interval; pure."""

from __future__ import annotations

import math
from typing import NamedTuple

Z95 = 1.959963984540054
"""The quantile of the normal distribution for an interval of 95 %."""


class Rate(NamedTuple):
    """A share of runs, and its 95 % confidence interval, each from 0 to 1."""

    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it in per cent."""
        return f"{self.rate:.1%} (95 %: {self.low:.1%} to {self.high:.1%})"


def wilson(failed: int, runs: int) -> Rate:
    """Return the share of runs that failed, with Wilson's score interval.

    Wilson's interval is right for few runs and for shares near 0 and 1: Wilson, Probable Inference, the Law
    of Succession, and Statistical Inference, 1927.

    Args:
        failed: How many failed.
        runs: How many there were; with 0, nothing is known.
    """
    if runs == 0:
        return Rate(0.0, 0.0, 1.0)
    share, square = failed / runs, Z95 * Z95
    middle = (share + square / (2 * runs)) / (1 + square / runs)
    half = Z95 / (1 + square / runs) * math.sqrt(share * (1 - share) / runs + square / (4 * runs * runs))
    low = 0.0 if failed == 0 else middle - half
    high = 1.0 if failed == runs else middle + half
    return Rate(share, max(0.0, low), min(1.0, high))
