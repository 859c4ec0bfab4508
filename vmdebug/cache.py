"""The cache of what vmdebug builds: kernels, unpacked sources, initramfs archives.

It is in $XDG_CACHE_HOME/vmdebug, or else in ~/.cache/vmdebug. Everything in it can be deleted: vmdebug makes
it again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from vmdebug import locks
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.paths import file_system, of_user, write_atomically
from vmdebug.progress import Report, Step

DIRECTORY_SECONDS = 7 * 24 * 3600
"""How long after its last use a directory of the cache is kept in any case."""

FILE_SECONDS = 2 * 3600
"""The same of a file."""


def directory(name: str) -> Path:
    """Return the directory `name` of the cache; it need not exist.

    Raises:
        HostError: the user has no home directory.
    """
    return of_user(platformdirs.user_cache_dir, "XDG_CACHE_HOME") / name


def write(path: Path, data: bytes) -> None:
    """Write a file of the cache so that no reader ever sees a part of it.

    Raises:
        HostError: the file system is full or not writable.
    """
    with writing(path.parent):
        write_atomically(path, data)


def used(path: Path) -> bool:
    """Return whether a file exists, and record for `keep_newest` that it is used now.

    Raises:
        HostError: the cache is not writable.
    """
    with writing(path.parent):
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True


def keep_newest(where: Path, pattern: str, count: int) -> None:
    """Delete what was used longest ago in a directory.

    Some things stay in any case. A run of tests starts guests from a description that it has made at its
    begin, so a file stays for `FILE_SECONDS` after its last use. A running guest keeps a deleted file open,
    but would miss the files of a directory that it shares: that stays for `DIRECTORY_SECONDS`.

    Args:
        where: The directory.
        pattern: Its files and directories, as for `glob`.
        count: How many to keep.
    """
    with writing(where):
        oldest_last = sorted(where.glob(pattern), key=touched, reverse=True)
        for path in oldest_last[count:]:
            kept = DIRECTORY_SECONDS if path.is_dir() else FILE_SECONDS
            if time.time() - touched(path) / 1e9 > kept:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a directory of the cache, whatever the modes in it are, if it exists."""

    def retry(function: Callable[[str], object], name: str, _: object) -> None:
        # Directories without write permission, as container images have them.
        with contextlib.suppress(OSError):
            Path(name).parent.chmod(0o700)
            function(name)

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=retry)
    else:
        path.unlink(missing_ok=True)


def touched(path: Path) -> int:
    """Return the modification time of a file, in ns; 0 if another process has just deleted it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def lock(path: Path, what: str, report: Report, deadline: Deadline) -> Iterator[None]:
    """Lock `path` during the block, so that only one process makes it.

    Args:
        path: What to make; the lock is a file beside it.
        what: The step, for reports and errors.
        report: Receives a step if another process has the lock.
        deadline: When to stop waiting for the lock.

    Raises:
        DeadlineError: the other process took too long.
        HostError: the cache is not writable.
    """
    with contextlib.ExitStack() as held:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(
                locks.held(
                    path.with_name(f"{path.name}.lock"),
                    what=f"another process that is {what}",
                    deadline=deadline,
                    waiting=lambda: report(Step(what, note="waiting for another process that does it")),
                )
            )
        yield


@contextlib.contextmanager
def writing(where: Path, needed: float = 0) -> Iterator[None]:
    """Turn errors of the file system into errors with a hint for the user.

    Args:
        where: The directory to write to.
        needed: Bytes that the whole step needs, for the hint.

    Raises:
        HostError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(where, needed) from error
        raise HostError(
            f"cannot write to {where}: {error.strerror}",
            hint="set XDG_CACHE_HOME to a directory that you can write to",
        ) from error


def check_space(where: Path, needed: float) -> None:
    """Check that there is enough space for a long step.

    Args:
        where: The directory to write to; it need not exist.
        needed: Bytes.

    Raises:
        HostError: less is free.
    """
    existing = next(path for path in (where, *where.parents) if path.is_dir())
    if shutil.disk_usage(existing).free < needed:
        raise _full(where, needed)


def refuse_full(output: str, where: Path, needed: float) -> None:
    """Check that a program did not fail because the disk is full.

    Args:
        output: Its output.
        where: The directory that it wrote to.
        needed: Bytes that the whole step needs, for the hint.

    Raises:
        HostError: its output says that no space is left.
    """
    if os.strerror(errno.ENOSPC) in output or os.strerror(errno.EDQUOT) in output:
        raise _full(where, needed)


def _full(where: Path, needed: float) -> HostError:
    amount = f"it needs {needed / 1e9:.1f} GB; " if needed else ""
    return HostError(
        f"not enough space for {where}: {file_system(where)}",
        hint=f"{amount}free some space, or set XDG_CACHE_HOME to a directory with more",
    )
