"""Run directories: RUNTIME/NAME/ has a VM's sockets, logs and state, accessible to its user only.

RUNTIME is $XDG_RUNTIME_DIR/vmdebug, or /tmp/vmdebug-UID where that variable is not set. Whoever can connect
to a gdbstub or to QMP controls the guest and can run programs as the user, so a directory that another user
could have made or can enter is refused.
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
from vmdebug.channel.port import PortAddress, Ways
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError, VmdebugError
from vmdebug.spelling import option

LONGEST_SOCKET_PATH = 107
"""Longest path of a socket in bytes: `sun_path` without its final NUL; see unix(7)."""

SHELL_PORTS = 24
"""How many commands can run in a guest at once. Each port costs the guest 0.5 MiB; a bus has 31."""

SPACE = 1 << 20
"""Bytes that must be free for a VM's logs and state."""

TIDY_SECONDS = 1.0
"""How long removing an empty directory may wait for another vmdebug."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""What names of VMs and tags of snapshots match."""

NAME_HINT = "use up to 63 ASCII letters, digits and _ . - that begin with a letter or a digit"

_HINTS = {
    errno.ENOSPC: "free some space there, or set XDG_RUNTIME_DIR to a directory that has some",
    errno.EDQUOT: "free some space there, or set XDG_RUNTIME_DIR to a directory that has some",
    errno.EACCES: "set XDG_RUNTIME_DIR to a directory that you may write to",
    errno.EPERM: "set XDG_RUNTIME_DIR to a directory that you may write to",
    errno.EROFS: "set XDG_RUNTIME_DIR to a directory that you may write to",
    errno.ENOENT: "XDG_RUNTIME_DIR names a directory that does not exist: make it, or unset the variable",
    errno.ENOTDIR: "XDG_RUNTIME_DIR names a file: set it to a directory, or unset it",
}


class RunDir(msgspec.Struct, frozen=True):
    """The paths in one VM's run directory; no I/O."""

    path: Path

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.path.name

    @property
    def state(self) -> Path:
        """What was started, and how; see `vmdebug.vm.state.State`."""
        return self.path / "state.json"

    @property
    def launching(self) -> Path:
        """Which processes start it; written when the directory is made."""
        return self.path / "launch.json"

    @property
    def qmp(self) -> Path:
        """QMP socket for people and other programs."""
        return self.path / "qmp.sock"

    @property
    def control(self) -> Path:
        """QMP socket for vmdebug itself: one connection at a time, under `control_lock`."""
        return self.path / "control.sock"

    @property
    def control_lock(self) -> Path:
        """Locked while `control` is in use."""
        return self.path / "control.lock"

    @property
    def gdb(self) -> Path:
        """The gdbstub's socket, unless it is on a TCP port."""
        return self.path / "gdb.sock"

    @property
    def attach_lock(self) -> Path:
        """Locked by the attached GDB; has that GDB's pid."""
        return self.path / "attach.lock"

    @property
    def console(self) -> Path:
        """Socket of the guest's first serial port."""
        return self.path / "console.sock"

    @property
    def console_lock(self) -> Path:
        """Locked by the client of `console`."""
        return self.path / "console.lock"

    @property
    def console_log(self) -> Path:
        """All output of the guest's first serial port."""
        return self.path / "console.log"

    @property
    def shell_ports(self) -> tuple[PortAddress, ...]:
        """The ports of the agent that runs commands in the guest."""
        return tuple(self._port(f"sh{number:02}") for number in range(1, SHELL_PORTS + 1))

    @property
    def shell_line(self) -> PortAddress:
        """The UART that the agent takes where the guest's kernel has no virtio console."""
        return self._port("shline")

    @property
    def guest_agent(self) -> PortAddress:
        """The port of qemu-guest-agent."""
        return self._port("qga")

    @property
    def ways(self) -> Ways:
        """All ways to the guest's shell."""
        return Ways(
            ports=self.shell_ports,
            uart=self.shell_line,
            guest_agent=self.guest_agent,
            console=PortAddress(self.console, self.console_lock),
            log=self.console_log,
            memory=self.path / "shell.json",
        )

    def _port(self, name: str) -> PortAddress:
        return PortAddress(self.path / f"{name}.sock", self.path / f"{name}.lock")

    @property
    def qemu_log(self) -> Path:
        """The output of QEMU or the runner script, stdout and stderr."""
        return self.path / "qemu.log"

    @property
    def pidfile(self) -> Path:
        """Has QEMU's pid, and exists while QEMU runs."""
        return self.path / "qemu.pid"

    @property
    def scratch(self) -> Path:
        """The directory for a runner script's disk, which is too big for XDG_RUNTIME_DIR: that is RAM.

        Its name differs between VMs of the same name under different RUNTIMEs.
        """
        place = f"{zlib.crc32(os.fsencode(self.path.parent)):08x}"
        return disk_directory().absolute() / f"vmdebug-{os.geteuid()}-{self.name}-{place}"

    def check(self) -> None:
        """Refuse a directory in which sockets cannot be bound.

        Raises:
            HostError: a path is too long, or has a newline.
        """
        longest = max((self.control, self.console), key=lambda path: len(os.fsencode(path)))
        length = len(os.fsencode(longest))
        if length > LONGEST_SOCKET_PATH:
            raise HostError(
                f"the path of the socket {longest} has {length} bytes, and must not exceed"
                f" {LONGEST_SOCKET_PATH}",
                hint=f"set XDG_RUNTIME_DIR to a shorter path, or choose a shorter name: {option('name')}",
            )
        if "\n" in str(self.path):
            raise HostError(
                f"the path of the run directory {str(self.path)!r} has a newline",
                hint="set XDG_RUNTIME_DIR to a path without one",
            )


def disk_directory() -> Path:
    """Return the directory for big files: $TMPDIR, or /var/tmp, which unlike /tmp is never RAM."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - files there are private or unnamed


def check_name(name: str) -> None:
    """Refuse an invalid name of a VM.

    Raises:
        UsageError: it is invalid.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a VM's name",
            hint=NAME_HINT,
        )


def runtime() -> Path:
    """Return RUNTIME's path, whether it exists or not."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return Path(given).absolute() / "vmdebug"
    return Path(f"/tmp/vmdebug-{os.geteuid()}")  # noqa: S108 - made 0700, refused when it is not ours


def root() -> Path:
    """Return RUNTIME's path after checking that VMs can be kept there.

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
    """Lock RUNTIME, which is made if needed: one process at a time changes it.

    The lock is on the directory itself, which is removed at the end if it is empty: where no VM is, vmdebug
    leaves nothing.

    Raises:
        HostError: it cannot be made or is not private.
        DeadlineError: another vmdebug had it locked all the time.
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
    """Remove RUNTIME if no VM is in it and no other process has it locked."""
    if _exists(runtime()):
        with contextlib.suppress(VmdebugError), locked(Deadline.after(TIDY_SECONDS)):
            pass


def make(rundir: RunDir) -> None:
    """Make a VM's directory. RUNTIME has to be locked.

    Raises:
        HostError: it cannot be made.
    """
    rundir.check()
    _refuse_full(rundir.path.parent)
    _mkdir(rundir.path)


def make_scratch(path: Path) -> None:
    """Make a runner's scratch directory; one that a VM of the same name left is removed.

    Raises:
        HostError: it cannot be made, or belongs to another user.
    """
    if _exists(path):
        _refuse_unless_private(path)
        remove(path)
    _mkdir(path)


def remove(path: Path) -> None:
    """Remove a directory with all that is in it, if it exists.

    Raises:
        HostError: something in it cannot be removed.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        # The directory does not exist, or QEMU has removed a socket in it just now: look again.
        if _exists(path):
            remove(path)
    except OSError as error:
        raise host_error(f"remove {path}", error) from error


def host_error(what: str, error: OSError) -> HostError:
    """Return the error for a failed system call under RUNTIME.

    Args:
        what: What was tried: "make /run/user/1000/vmdebug".
        error: The system's error.
    """
    number = error.errno or 0
    return HostError(f"cannot {what}: {os.strerror(number)}", hint=_HINTS.get(number, ""))


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
        os.close(fd)  # the directory was removed while we waited, so this lock excludes nobody


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
    """Return whether a path still names an open file or directory."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.lstat())
    return False


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _refuse_unless_private(path: Path) -> None:
    """Raise HostError unless the directory is this user's alone, or does not exist any more."""
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
    # A file system that does not count blocks has 0 of them.
    if free.f_blocks and free.f_bavail * free.f_frsize < SPACE:
        raise host_error(f"keep a VM's logs and state in {path}", OSError(errno.ENOSPC, ""))
