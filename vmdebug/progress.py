"""Progress of long steps.

Layers below the command line never print: they call a `Report`, and the command line shows the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """The state of a long step.

    Args:
        what: The name of the step, the same in all its reports: "building the kernel".
        done: Units done; None if the step has no units.
        total: Units in total; None while unknown.
        note: The current file or store path.
    """

    what: str
    done: int | None = None
    total: int | None = None
    note: str = ""


Report = Callable[[Step], None]


def silent(step: Step) -> None:
    """Ignore the step."""
