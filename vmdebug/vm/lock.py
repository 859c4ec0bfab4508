"""Advisory locks, flock(2): they end with their holder however it ends, and work on directories."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from collections.abc import Iterator
from pathlib import Path

from vmdebug.deadline import Deadline

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05


def take(fd: int, *, what: str, deadline: Deadline) -> None:
    """Lock an open file or directory; closing it unlocks.

    Args:
        fd: Its descriptor.
        what: What is waited for, for the error: "the other vmdebug to finish".
        deadline: Until when to wait for the present holder.

    Raises:
        DeadlineError: somebody held it all the time.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # flock(2) has no timeout and nothing to poll: asking again is all there is.
            select.select([], [], [], min(pause, deadline.left(what)))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return


@contextlib.contextmanager
def held(path: Path, *, what: str, deadline: Deadline) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is not there.

    Raises:
        OSError: the file cannot be opened.
        DeadlineError: somebody held it all the time.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        take(fd, what=what, deadline=deadline)
        yield
    finally:
        os.close(fd)


def free(fd: int) -> bool:
    """Lock an open file if nobody else has it locked; closing it unlocks."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
