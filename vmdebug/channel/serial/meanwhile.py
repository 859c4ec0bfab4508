"""Waiting for the guest to say something, while a debugger may stop it."""

from __future__ import annotations

import select
from typing import Protocol


class Meanwhile(Protocol):
    """What else may happen: `debugger.gdb.Gdb` is one."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to look at, or -1."""

    def look(self) -> None:
        """Look; raise where what is waited for cannot come now."""


def readable(fd: int, other: Meanwhile | None, seconds: float) -> bool:
    """Wait until a descriptor is readable, and return whether it is; sooner where there is something else.

    Args:
        fd: The descriptor.
        other: What else is looked after.
        seconds: How long.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    beside = -1 if other is None else other.fileno()
    if beside >= 0:
        poll.register(beside, select.POLLIN)
    if any(ready == fd for ready, _ in poll.poll(1000 * seconds)):
        return True
    if other is not None:
        other.look()
    return False
