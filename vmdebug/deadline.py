"""Deadlines on the monotonic clock, and the two ways to wait: for a descriptor, or in growing pauses."""

from __future__ import annotations

import math
import select
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vmdebug.errors import DeadlineError, UsageError

BUILD_SECONDS = 24 * 3600.0
"""How long it may take to find a guest: nix or make may build a kernel, and Ctrl-C works."""

LAUNCH_SECONDS = 120.0
"""How long QEMU may take until it answers, including the test whether KVM works."""

BOOT_SECONDS = 180.0
"""How long a guest may take to boot to its shell."""

COPY_SECONDS = 3600.0
"""How long a copy to a guest or from it may take; a guest that dies or stops is noticed at once."""

LONGEST_SECONDS = 20 * 24 * 3600.0
"""A longer timeout, such as infinity, counts as this one: poll(2) takes at most 2**31 milliseconds."""

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05
_GROWTH = 2


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment after which waiting is an error.

    A function that knows the user's timeout makes the deadline and passes it down, so that all waits
    below it share one budget instead of adding up.

    Args:
        at: The moment, as `time.monotonic` counts.
        seconds: The timeout that it was made from, for the error.
    """

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that passes `seconds` from now, at most `LONGEST_SECONDS`.

        Raises:
            UsageError: `seconds` is not a number.
        """
        if not isinstance(seconds, int | float) or math.isnan(seconds):
            raise UsageError(
                f"timeout={seconds!r} is not a number of seconds", hint="give a number of seconds: timeout=60"
            )
        return cls(time.monotonic() + min(seconds, LONGEST_SECONDS), seconds)

    @property
    def passed(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self.at

    @property
    def remaining(self) -> float:
        """The seconds that remain; 0 after the deadline."""
        return max(0.0, self.at - time.monotonic())

    def left(self, what: str) -> float:
        """Return the seconds that remain, always more than 0.

        Args:
            what: What the caller waits for, for the error: "QEMU to answer on QMP".

        Raises:
            DeadlineError: the deadline has passed.
        """
        remaining = self.at - time.monotonic()
        if remaining <= 0:
            raise self.error(what)
        return remaining

    def pauses(self, what: str, *, longest: float = _LONGEST_PAUSE) -> Iterator[float]:
        """Yield how long to wait before each retry of something that has no descriptor to wait on.

        The pauses grow from 1 ms to 50 ms, or to `longest` seconds, and end at the deadline::

            for pause in deadline.pauses("QEMU to listen"):
                if connected(path):
                    return
                time.sleep(pause)

        Args:
            what: What the caller waits for, for the error.
            longest: The longest pause, in seconds.

        Raises:
            DeadlineError: the deadline has passed; the first try is always made.
        """
        pause = _FIRST_PAUSE
        yield min(pause, self.remaining)
        while True:
            pause = min(_GROWTH * pause, longest)
            yield min(pause, self.left(what))

    def at_most(self, seconds: float) -> Deadline:
        """Return the sooner of this deadline and one `seconds` from now."""
        sooner = Deadline.after(seconds)
        return sooner if sooner.at < self.at else self

    def error(self, what: str, *, hint: str = "", detail: str = "") -> DeadlineError:
        """Return the error that says what the caller waited for, and how long."""
        return DeadlineError(f"waited {round(self.seconds, 2):g} s for {what}", hint=hint, detail=detail)


def wait_ready(
    *descriptors: int, seconds: float | None, events: Mapping[int, int] = MappingProxyType({})
) -> frozenset[int]:
    """Return the descriptors that are ready, waiting until one is or the time has passed; see poll(2).

    A descriptor whose other end is closed counts as ready: the read that follows says what happened.

    Args:
        descriptors: Descriptors to read from; a negative one is ignored, as poll(2) does.
        seconds: How long to wait at most; None waits without a limit.
        events: Further descriptors, and what to wait for on each: `select.POLLIN` to read, `select.POLLOUT`
            to write.

    Returns:
        The ready descriptors; empty where the time has passed.
    """
    waiter = select.poll()
    for descriptor in descriptors:
        if descriptor >= 0:
            waiter.register(descriptor, select.POLLIN)
    for descriptor, wanted in events.items():
        waiter.register(descriptor, wanted)
    return frozenset(
        descriptor for descriptor, _ in waiter.poll(None if seconds is None else max(0.0, seconds) * 1000)
    )
