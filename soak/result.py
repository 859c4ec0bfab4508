"""What a part of the soak test returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of a part.

    Args:
        figures: What was done, and how often, as a line for people.
        failures: What was left, hung, grew or ended with a traceback; empty if all went well.
    """

    figures: str
    failures: tuple[str, ...]
