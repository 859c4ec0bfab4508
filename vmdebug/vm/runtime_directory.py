"""RUNTIME, which has the directories of all VMs: where it is, who may change it, whether it is private.

RUNTIME is $XDG_RUNTIME_DIR/vmdebug, or /tmp/vmdebug-UID if that variable is not set. A program that connects
to the gdbstub or to QMP controls the guest and can run programs as the user. So vmdebug refuses a directory
that belongs to another user, or that another user can enter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from vmdebug import locks, paths
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, VmdebugError
from vmdebug.vm.rundir import RunDir

SPACE = 1 << 20
"""Bytes that must be free for a VM's logs and state."""

TIDY_SECONDS = 1.0
"""How long removing an empty directory may wait for another vmdebug."""

_HINTS = {
    errno.ENOSPC: "free some space there, or set XDG_RUNTIME_DIR to a directory that has some",
    errno.EDQUOT: "free some space there, or set XDG_RUNTIME_DIR to a directory that has some",
    errno.EACCES: "set XDG_RUNTIME_DIR to a directory that you may write to",
    errno.EPERM: "set XDG_RUNTIME_DIR to a directory that you may write to",
    errno.EROFS: "set XDG_RUNTIME_DIR to a directory that you may write to",
    errno.ENOENT: "XDG_RUNTIME_DIR names a directory that does not exist: make it, or unset the variable",
    errno.ENOTDIR: "XDG_RUNTIME_DIR names a file: set it to a directory, or unset it",
}


def location() -> Path:
    """Return RUNTIME's path, whether it exists or not."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return Path(given).absolute() / "vmdebug"
    return usual_places()[0]


def usual_places() -> tuple[Path, Path]:
    """Return RUNTIME without XDG_RUNTIME_DIR, and with the one of systemd-logind."""
    user = os.geteuid()
    return (
        Path(f"/tmp/vmdebug-{user}"),  # noqa: S108 - made 0700, refused when it is not ours
        Path(f"/run/user/{user}/vmdebug"),
    )


def root() -> Path:
    """Check that RUNTIME is private and has space, and return its path.

    Raises:
        HostError: it is not private, cannot be made, or has no space.
    """
    where = location()
    if _exists(where):
        _refuse_unless_private(where)
    elif not os.access(where.parent, os.W_OK | os.X_OK):
        missing = not where.parent.exists()
        raise host_error(f"make {where}", OSError(errno.ENOENT if missing else errno.EACCES, ""))
    _refuse_full(where if _exists(where) else where.parent)
    return where


@contextlib.contextmanager
def locked(deadline: Deadline) -> Iterator[Path]:
    """Make RUNTIME if it does not exist, and lock it, so that one process at a time changes it.

    The lock is on the directory itself. After the block, the directory is removed if it is empty.

    Raises:
        HostError: it cannot be made or is not private.
        DeadlineError: another vmdebug kept it locked.
    """
    path = location()
    fd = _lock_directory(path, deadline)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # it is not empty, the usual case
            path.rmdir()
        os.close(fd)


def tidy() -> None:
    """Remove RUNTIME if it is empty and no other process has locked it."""
    if _exists(location()):
        with contextlib.suppress(VmdebugError), locked(Deadline.after(TIDY_SECONDS)):
            pass


def make(rundir: RunDir) -> None:
    """Make a VM's directory. RUNTIME must be locked.

    Raises:
        HostError: it cannot be made.
    """
    rundir.check()
    _refuse_full(rundir.path.parent)
    _mkdir(rundir.path)


def make_scratch(path: Path) -> None:
    """Make a runner's scratch directory; first remove one that an earlier VM of that name left.

    Raises:
        HostError: it cannot be made, or belongs to another user.
    """
    if _exists(path):
        _refuse_unless_private(path)
        remove(path)
    _mkdir(path)


@contextlib.contextmanager
def kept_from_cleaning(*directories: Path) -> Iterator[tuple[int, ...]]:
    """Lock directories for the processes that inherit the descriptors: systemd-tmpfiles then removes nothing.

    It cleans /tmp and /var/tmp by age, and skips a locked directory; see "Age" in tmpfiles.d(5).
    """
    with contextlib.ExitStack() as opened:
        fds = []
        for directory in directories:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            locks.try_lock(fd)
            fds.append(fd)
        yield tuple(fds)


def remove(path: Path) -> None:
    """Remove a directory and its contents, if it exists.

    Raises:
        HostError: a file in it cannot be removed.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        # The directory does not exist, or QEMU has removed a socket in it just now: look again.
        if _exists(path):
            remove(path)
    except OSError as error:
        raise host_error(f"remove {path}", error) from error


def host_error(what: str, error: OSError, place: Path | None = None) -> HostError:
    """Return the error for a failed system call under RUNTIME.

    Args:
        what: What failed: "make /run/user/1000/vmdebug".
        error: The system's error.
        place: A path on the file system in question; None: RUNTIME.
    """
    number = error.errno or 0
    where = f"; {paths.file_system(place or location())}" if number == errno.ENOSPC else ""
    return HostError(f"cannot {what}: {os.strerror(number)}{where}", hint=_HINTS.get(number, ""))


def _lock_directory(path: Path, deadline: Deadline) -> int:
    while True:
        _mkdir(path, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process removed it between our two calls
        except OSError as error:
            raise host_error(f"open {path}", error) from error
        try:
            locks.lock(fd, what="another vmdebug to finish starting or clearing a VM", deadline=deadline)
            if same(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the directory was removed meanwhile, so this lock has no effect


def _mkdir(path: Path, *, exist_ok: bool = False) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError as error:
        if not exist_ok:
            raise host_error(f"make {path}", error) from error
        _refuse_unless_private(path)
    except OSError as error:
        raise host_error(f"make {path}", error) from error


def same(fd: int, path: Path) -> bool:
    """Return whether a path still refers to an open file or directory."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.lstat())
    return False


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _refuse_unless_private(path: Path) -> None:
    """Raise HostError if a directory exists and is not private to this user."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    problem = ""
    if stat.S_ISLNK(found.st_mode):
        problem = "is a symbolic link"
    elif not stat.S_ISDIR(found.st_mode):
        problem = "is not a directory"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}"
    elif found.st_mode & 0o077:
        problem = f"can be entered by others: its mode is {stat.S_IMODE(found.st_mode):04o}"
    if problem:
        raise HostError(
            f"{path} {problem}, so a VM's sockets would not be safe in it",
            hint="remove it if it is yours, or set XDG_RUNTIME_DIR to a directory of your own",
        )


def check_room(rundir: RunDir, *, scratch: bool) -> None:
    """Check that a VM can be started in place of another one, whose directories are removed first.

    Args:
        rundir: The directory of that VM.
        scratch: Whether the new VM has a scratch directory.

    Raises:
        HostError: there is no space; it names the file system.
    """
    for path in (rundir.path, rundir.scratch) if scratch else (rundir.path,):
        _refuse_full(path.parent, freed=_used(path))


def _used(directory: Path) -> int:
    """Return the number of bytes that the files of a directory take."""
    found = 0
    for entry in os.scandir(directory) if _exists(directory) else ():
        with contextlib.suppress(FileNotFoundError):
            found += _BLOCK * entry.stat(follow_symlinks=False).st_blocks
    return found


_BLOCK = 512
"""The unit of `st_blocks`; see stat(2)."""


def _refuse_full(path: Path, *, freed: int = 0) -> None:
    try:
        free = os.statvfs(path)
    except FileNotFoundError:
        return
    # Some file systems do not count blocks, and report 0.
    if free.f_blocks and free.f_bavail * free.f_frsize + freed < SPACE:
        raise host_error(f"keep a VM's files in {path}", OSError(errno.ENOSPC, ""), path)
