"""What a long step tells about itself; who shows it decides how.

Layers below the command line get a `Report` and call it; they never print.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One state of a long step.

    Args:
        what: The step's name, the same in all its reports: "building the kernel".
        done: Units done, or None where it has none.
        total: Units in all, or None while unknown.
        note: What is at hand now: a file, a store path.
    """

    what: str
    done: int | None = None
    total: int | None = None
    note: str = ""


Report = Callable[[Step], None]


def silent(step: Step) -> None:
    """Report to nobody."""
