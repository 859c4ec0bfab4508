"""Where built things are kept: kernels, unpacked sources, initramfs images.

Below $XDG_CACHE_HOME/vmdebug, else ~/.cache/vmdebug. Everything in it can be
deleted; it is made again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.progress import Report, Step


def directory(name: str) -> Path:
    """Return the cache's directory `name`; it need not exist."""
    return Path(platformdirs.user_cache_dir("vmdebug")) / name


def write(path: Path, data: bytes) -> None:
    """Write a file of the cache so that no reader ever sees a part of it.

    Raises:
        HostError: the file system is full, or not ours to write.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def used(path: Path) -> bool:
    """Return whether a file is there, and note that it was used now, for `keep_newest`.

    Raises:
        HostError: the cache is not ours to write.
    """
    with writing(path.parent):
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True


def keep_newest(where: Path, pattern: str, count: int) -> None:
    """Delete the files of a directory that have not been touched for longest.

    Args:
        where: The directory.
        pattern: Which files of it, as for `glob`.
        count: How many stay.
    """
    with writing(where):
        oldest_last = sorted(where.glob(pattern), key=touched, reverse=True)
        for path in oldest_last[count:]:
            path.unlink(missing_ok=True)


def touched(path: Path) -> int:
    """Return a file's time of change, in ns; 0 when another process has just deleted it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def lock(path: Path, what: str, report: Report, deadline: Deadline) -> Iterator[None]:
    """Be the only process that makes `path`, while the block runs.

    Args:
        path: What is made; the lock is a file beside it.
        what: What is done, for reports and errors.
        report: Told when another process has the lock.
        deadline: When waiting for it is given up.

    Raises:
        DeadlineError: the other one took too long.
        HostError: the cache is not ours to write.
    """
    import filelock  # noqa: PLC0415 - 10 ms, and only for what is built

    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(path.with_name(f"{path.name}.lock"))
        try:
            held.acquire(blocking=False)
        except filelock.Timeout:
            report(Step(what, note="another process does it, waiting for that"))
            waited = f"another process that is {what}"
            try:
                held.acquire(timeout=deadline.left(waited))
            except filelock.Timeout:
                raise deadline.error(waited) from None
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def writing(where: Path, needed: float = 0) -> Iterator[None]:
    """Turn what a file system says to a writer into what the user can do about it.

    Args:
        where: The directory written to.
        needed: How much the whole step takes, in bytes, for the hint.

    Raises:
        HostError: instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(where, needed) from error
        raise HostError(
            f"cannot write to {where}: {error.strerror}", hint="set XDG_CACHE_HOME to a directory of yours"
        ) from error


def check_space(where: Path, needed: float) -> None:
    """Make sure that a long step will not end for want of space.

    Args:
        where: The directory written to; it need not exist.
        needed: Bytes.

    Raises:
        HostError: fewer are free.
    """
    existing = next(path for path in (where, *where.parents) if path.is_dir())
    if shutil.disk_usage(existing).free < needed:
        raise _full(where, needed)


def refuse_full(output: str, where: Path, needed: float) -> None:
    """Make sure that a program did not fail for want of space.

    Args:
        output: What it wrote.
        where: The directory that it wrote to.
        needed: How much the whole step takes, in bytes, for the hint.

    Raises:
        HostError: its output says that there was none left.
    """
    if os.strerror(errno.ENOSPC) in output or os.strerror(errno.EDQUOT) in output:
        raise _full(where, needed)


def _full(where: Path, needed: float) -> HostError:
    amount = f"{needed / 1e9:.1f} GB are needed; " if needed else ""
    return HostError(
        f"not enough space on the file system of {where}",
        hint=f"{amount}free some, or set XDG_CACHE_HOME to a directory that has more",
    )
