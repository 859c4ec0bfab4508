"""A point on the monotonic clock; every wait in vmdebug takes one."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vmdebug.errors import DeadlineError


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment after which waiting is an error.

    A deadline is made once, where the user's timeout is known, and handed down:
    the waits below it share one budget instead of adding up.
    """

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that passes `seconds` from now."""
        return cls(time.monotonic() + seconds, seconds)

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return time.monotonic() >= self.at

    def left(self, what: str) -> float:
        """Return the seconds that remain, always more than 0.

        Args:
            what: What is waited for, for the error: "QEMU to answer on QMP".

        Raises:
            DeadlineError: nothing remains.
        """
        remaining = self.at - time.monotonic()
        if remaining <= 0:
            raise self.error(what)
        return remaining

    def at_most(self, seconds: float) -> Deadline:
        """Return the sooner of this deadline and one `seconds` from now."""
        sooner = Deadline.after(seconds)
        return sooner if sooner.at < self.at else self

    def error(self, what: str, *, hint: str = "", detail: str = "") -> DeadlineError:
        """Return the error that says what was waited for and how long."""
        return DeadlineError(f"waited {self.seconds:g} s for {what}", hint=hint, detail=detail)
