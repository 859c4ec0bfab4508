"""Advisory locks, flock(2): the kernel ends them with their holder, and they work on directories as well."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vmdebug.deadline import Deadline


def try_lock(fd: int) -> bool:
    """Lock an open file or directory, unless it is locked already; closing the file unlocks it.

    Args:
        fd: Its descriptor.

    Returns:
        Whether it is locked now. The lock belongs to the open file, so fork(2) and execve(2) pass it on.
    """
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def is_held(path: Path, pid: int) -> bool:
    """Whether a process has locked a file; does not lock it, so that nobody else finds it locked.

    See proc_locks(5). Only the inode is compared: the device there is not stat(2)'s on every file system.
    """
    try:
        inode = str(path.stat().st_ino)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    fields = (line.split() for line in lines)
    return any(
        each[1] == "FLOCK" and each[4] == str(pid) and each[5].rpartition(":")[2] == inode for each in fields
    )


def lock(fd: int, *, what: str, deadline: Deadline) -> None:
    """Lock an open file or directory, waiting for its holder; closing the file unlocks it.

    Args:
        fd: Its descriptor.
        what: What the caller waits for, for the error: "the other vmdebug to finish".
        deadline: When to give up.

    Raises:
        DeadlineError: it was locked all the time.
    """
    pauses = deadline.pauses(what)
    # flock(2) has no timeout, and no descriptor tells when a lock is free.
    while not try_lock(fd):
        time.sleep(next(pauses))


@contextlib.contextmanager
def held(
    path: Path, *, what: str, deadline: Deadline, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the lock of a file, which is made if it does not exist.

    Args:
        path: The file.
        what: What the caller waits for, for the error.
        deadline: When to give up.
        waiting: Called once where the file is locked already.

    Raises:
        OSError: the file cannot be opened.
        DeadlineError: it was locked all the time.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(fd):
            if waiting is not None:
                waiting()
            lock(fd, what=what, deadline=deadline)
        yield
    finally:
        os.close(fd)
