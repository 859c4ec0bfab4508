"""What a part of the soak test returns."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of a part.

    Args:
        figures: What was done, and how often, as a line for people.
        failures: What was left behind, hung, grew or ended with a traceback; empty if all went well.
    """

    figures: str
    failures: tuple[str, ...]


class Rounds:
    """Counts the rounds of a part by kind, and prints each failure at once.

    Args:
        name: What a round is, for the figures.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kinds: Counter[str] = Counter()
        self._failures: list[str] = []

    def add(self, kind: str, what: str, problems: list[str]) -> None:
        """Add a round: its kind, what was done in it, and what went wrong."""
        self._kinds[kind] += 1
        for problem in problems:
            self._failures.append(f"{what}: {problem}")
            print(f"  {self._failures[-1]}", file=sys.stderr, flush=True)

    def result(self) -> Result:
        """Return the figures so far."""
        each = ", ".join(f"{total} {kind}" for kind, total in sorted(self._kinds.items()))
        total = self._kinds.total()
        return Result(f"{total} {self._name} ({each}), {len(self._failures)} failures", tuple(self._failures))
