"""Where a running VM keeps its sockets, logs and state: RUNTIME/NAME/, open to its owner only.

RUNTIME is $XDG_RUNTIME_DIR/vmdebug, or /tmp/vmdebug-UID where that is not set.
Whoever may connect to a gdbstub or to QMP owns the guest and can run programs as
the user, so a directory that anybody else could have made or can enter is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmdebug import locks
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError, VmdebugError
from vmdebug.spelling import option

LONGEST_SOCKET_PATH = 107
"""Bytes of a socket's path: `sun_path` less its final NUL; see unix(7)."""

SPACE = 1 << 20
"""Bytes that have to be free for a VM's logs and state."""

_TIDY_SECONDS = 1.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

_HINTS = {
    errno.ENOSPC: "free some space there, or set XDG_RUNTIME_DIR to a directory that has some",
    errno.EDQUOT: "free some space there, or set XDG_RUNTIME_DIR to a directory that has some",
    errno.EACCES: "set XDG_RUNTIME_DIR to a directory that you may write to",
    errno.EPERM: "set XDG_RUNTIME_DIR to a directory that you may write to",
    errno.EROFS: "set XDG_RUNTIME_DIR to a directory that you may write to",
    errno.ENOENT: "XDG_RUNTIME_DIR names a directory that is not there: make it, or unset the variable",
    errno.ENOTDIR: "XDG_RUNTIME_DIR names a file: set it to a directory, or unset it",
}


class RunDir(msgspec.Struct, frozen=True):
    """One VM's run directory: the paths of what is in it. Making one does no I/O."""

    path: Path

    @property
    def name(self) -> str:
        """What the VM is called."""
        return self.path.name

    @property
    def state(self) -> Path:
        """What was started and how; see `vmdebug.vm.state.State`."""
        return self.path / "state.json"

    @property
    def launching(self) -> Path:
        """Who starts it; there from the directory's first moment on."""
        return self.path / "launch.json"

    @property
    def qmp(self) -> Path:
        """QMP for people and other programs."""
        return self.path / "qmp.sock"

    @property
    def control(self) -> Path:
        """QMP for vmdebug itself: one connection at a time, under `control_lock`."""
        return self.path / "control.sock"

    @property
    def control_lock(self) -> Path:
        """Held while `control` is in use."""
        return self.path / "control.lock"

    @property
    def gdb(self) -> Path:
        """The gdbstub, unless it is on a TCP port."""
        return self.path / "gdb.sock"

    @property
    def attach_lock(self) -> Path:
        """Held by the attached GDB; its text is that GDB's pid."""
        return self.path / "attach.lock"

    @property
    def console(self) -> Path:
        """The guest's first serial port."""
        return self.path / "console.sock"

    @property
    def console_lock(self) -> Path:
        """Held by the console's one client."""
        return self.path / "console.lock"

    @property
    def console_log(self) -> Path:
        """Everything that the guest wrote to its first serial port."""
        return self.path / "console.log"

    @property
    def qemu_log(self) -> Path:
        """What QEMU, or the runner script, wrote to stdout and stderr."""
        return self.path / "qemu.log"

    @property
    def pidfile(self) -> Path:
        """QEMU's pid, there while it runs."""
        return self.path / "qemu.pid"

    @property
    def scratch(self) -> Path:
        """Where a runner script puts its disk: too big for the RAM that XDG_RUNTIME_DIR is.

        The name tells apart VMs of one name under different RUNTIMEs.
        """
        base = Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - made 0700, refused when it is there
        place = f"{zlib.crc32(os.fsencode(self.path.parent)):08x}"
        return base.absolute() / f"vmdebug-{os.geteuid()}-{self.name}-{place}"

    def check(self) -> None:
        """Refuse a directory whose sockets could not be bound.

        Raises:
            HostError: a path is too long or cannot be written into a line.
        """
        longest = max((self.control, self.console), key=lambda path: len(os.fsencode(path)))
        length = len(os.fsencode(longest))
        if length > LONGEST_SOCKET_PATH:
            raise HostError(
                f"the socket {longest} has a path of {length} bytes, and a socket's must not exceed"
                f" {LONGEST_SOCKET_PATH}",
                hint=f"set XDG_RUNTIME_DIR to a shorter path, or choose a shorter name: {option('name')}",
            )
        if "\n" in str(self.path):
            raise HostError(
                f"the run directory {str(self.path)!r} has a newline in its path",
                hint="set XDG_RUNTIME_DIR to a plain path",
            )


def check_name(name: str) -> None:
    """Refuse what cannot be a VM's name.

    Raises:
        UsageError: it is not one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a VM's name",
            hint="up to 63 letters, digits and _ . - of ASCII, the first a letter or a digit",
        )


def runtime() -> Path:
    """Return RUNTIME's path; it need not exist."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return Path(given).absolute() / "vmdebug"
    return Path(f"/tmp/vmdebug-{os.geteuid()}")  # noqa: S108 - made 0700, refused when it is not ours


def root() -> Path:
    """Return RUNTIME's path, or say why VMs cannot be kept there.

    Raises:
        HostError: it is not private, cannot be made, or has no space.
    """
    where = runtime()
    if _exists(where):
        _refuse_unless_private(where)
    elif not os.access(where.parent, os.W_OK | os.X_OK):
        missing = not where.parent.exists()
        raise host_error(f"make {where}", OSError(errno.ENOENT if missing else errno.EACCES, ""))
    _refuse_full(where if _exists(where) else where.parent)
    return where


@contextlib.contextmanager
def locked(deadline: Deadline) -> Iterator[Path]:
    """Hold RUNTIME, so that what is in it is changed by one process at a time; made if needed.

    The lock is on the directory itself, and the directory goes when it is empty at the end: nothing
    of vmdebug is left where no VM is.

    Raises:
        HostError: it cannot be made or is not private.
        DeadlineError: another vmdebug held it all the time.
    """
    path = runtime()
    fd = _lock_directory(path, deadline)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # it is not empty, the usual case
            path.rmdir()
        os.close(fd)


def tidy() -> None:
    """Remove RUNTIME if there is no VM in it; somebody else's concern if it is in use."""
    if _exists(runtime()):
        with contextlib.suppress(VmdebugError), locked(Deadline.after(_TIDY_SECONDS)):
            pass


def make(rundir: RunDir) -> None:
    """Make a VM's directory; RUNTIME is locked.

    Raises:
        HostError: it cannot be made.
    """
    rundir.check()
    _refuse_full(rundir.path.parent)
    _mkdir(rundir.path)


def make_scratch(path: Path) -> None:
    """Make a runner's scratch directory, in place of one that a VM of the same name left.

    Raises:
        HostError: it cannot be made, or belongs to somebody else.
    """
    if _exists(path):
        _refuse_unless_private(path)
        remove(path)
    _mkdir(path)


def remove(path: Path) -> None:
    """Remove a directory of ours with all that is in it; nothing happens when it is gone.

    Raises:
        HostError: something in it cannot be removed.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        # Itself, or a socket in it that QEMU removed meanwhile: look again.
        if _exists(path):
            remove(path)
    except OSError as error:
        raise host_error(f"remove {path}", error) from error


def host_error(what: str, error: OSError) -> HostError:
    """Return the error for a system call's failure under RUNTIME.

    Args:
        what: What was tried: "make /run/user/1000/vmdebug".
        error: How it failed.
    """
    number = error.errno or 0
    return HostError(f"cannot {what}: {os.strerror(number)}", hint=_HINTS.get(number, ""))


def _lock_directory(path: Path, deadline: Deadline) -> int:
    while True:
        _mkdir(path, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # the last one out removed it between our two calls
        except OSError as error:
            raise host_error(f"open {path}", error) from error
        try:
            locks.lock(fd, what="another vmdebug to finish starting or clearing a VM", deadline=deadline)
            if same(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed while we waited: what we locked has no name any more


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
    """Say whether a path still names an open file or directory."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.lstat())
    return False


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _refuse_unless_private(path: Path) -> None:
    """Raise HostError unless the directory is ours alone. It may vanish meanwhile: then it is not there."""
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


def _refuse_full(path: Path) -> None:
    try:
        free = os.statvfs(path)
    except FileNotFoundError:
        return
    # No blocks at all: a file system that does not count them.
    if free.f_blocks and free.f_bavail * free.f_frsize < SPACE:
        raise host_error(f"keep a VM's logs and state in {path}", OSError(errno.ENOSPC, ""))
