"""Run directories: RUNTIME/NAME/ has the sockets, logs and state of a VM.

RUNTIME is $XDG_RUNTIME_DIR/vmdebug, or /tmp/vmdebug-UID if that variable is not set. A program that connects
to the gdbstub or to QMP controls the guest and can run programs as the user. So vmdebug refuses a directory
that belongs to another user, or that another user can enter.
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

from vmdebug import locks, paths
from vmdebug.channel.port import PortAddress, Ways
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError, VmdebugError
from vmdebug.spelling import option

LONGEST_SOCKET_PATH = 107
"""Longest path of a socket in bytes: `sun_path` without its final NUL; see unix(7)."""

SHELL_PORTS = 24
"""Number of commands that can run in a guest at once. Each port takes 0.5 MiB of its memory; a bus has 31."""

SEGMENTS = ".segments"
"""Directory of the network segments in RUNTIME; no VM's name begins with a dot."""

SPACE = 1 << 20
"""Bytes that must be free for a VM's logs and state."""

TIDY_SECONDS = 1.0
"""How long removing an empty directory may wait for another vmdebug."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""The pattern of VM names and snapshot tags."""

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
        """The file with the VM's `vmdebug.vm.state.State`."""
        return self.path / "state.json"

    @property
    def launching(self) -> Path:
        """The file with its `vmdebug.vm.state.Launching`, written when the directory is made."""
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
    def relay(self) -> Path:
        """QMP socket of the process that types into a recorded guest, or wakes one that is replayed."""
        return self.path / "relay.sock"

    @property
    def replay(self) -> Path:
        """The file with the `vmdebug.replaying.Replaying` of a replay."""
        return self.path / "replay.json"

    @property
    def lines(self) -> Path:
        """The file with a replay's lines of the console; see `vmdebug.recording.positions.Line`."""
        return self.path / "lines.json"

    @property
    def gdb(self) -> Path:
        """The gdbstub's socket, unless it is on a TCP port."""
        return self.path / "gdb.sock"

    @property
    def attach_lock(self) -> Path:
        """File that the attached GDB keeps locked; contains its pid."""
        return self.path / "attach.lock"

    @property
    def trace(self) -> Path:
        """The socket of the plugin that collects traces, if QEMU has loaded it."""
        return self.path / "trace.sock"

    @property
    def console(self) -> Path:
        """Socket of the guest's first serial port."""
        return self.path / "console.sock"

    @property
    def console_lock(self) -> Path:
        """File that the client of `console` keeps locked."""
        return self.path / "console.lock"

    @property
    def console_log(self) -> Path:
        """The output of the guest's first serial port; read it with `vmdebug.channel.log.kept`."""
        return self.path / "console.log"

    @property
    def shell_ports(self) -> tuple[PortAddress, ...]:
        """The ports of the agent that runs commands in the guest."""
        return tuple(self._port(f"sh{number:02}") for number in range(1, SHELL_PORTS + 1))

    @property
    def shell_line(self) -> PortAddress:
        """The UART that the agent uses if the guest's kernel has no virtio console."""
        return self._port("shline")

    @property
    def guest_agent(self) -> PortAddress:
        """The port of qemu-guest-agent."""
        return self._port("qga")

    @property
    def ways(self) -> Ways:
        """The host's ends of all ways into the guest."""
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

    def file_server(self, number: int) -> Path:
        """The socket of the virtiofsd that serves a directory; the number is that in `LaunchSpec.shared`."""
        return self.path / f"fs{number}.sock"

    @property
    def qemu_log(self) -> Path:
        """The output of QEMU or the runner script, stdout and stderr."""
        return self.path / "qemu.log"

    @property
    def pidfile(self) -> Path:
        """File with QEMU's pid; QEMU removes it when it ends."""
        return self.path / "qemu.pid"

    @property
    def scratch(self) -> Path:
        """The directory for a runner script's disk, which is too big for XDG_RUNTIME_DIR, a tmpfs.

        Its name differs between VMs of the same name under different RUNTIMEs.
        """
        place = f"{zlib.crc32(os.fsencode(self.path.parent)):08x}"
        return disk_directory().absolute() / f"vmdebug-{os.geteuid()}-{self.name}-{place}"

    def segment(self, name: str) -> Path:
        """Return the socket of the hub of a network segment; see `vmdebug.vm.segment`."""
        return self.path.parent / SEGMENTS / name / "hub.sock"

    def check(self) -> None:
        """Check that sockets can be bound in this directory.

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
    """Check the name of a VM.

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
    """Make RUNTIME if it does not exist, and lock it, so that one process at a time changes it.

    The lock is on the directory itself. After the block, the directory is removed if it is empty.

    Raises:
        HostError: it cannot be made or is not private.
        DeadlineError: another vmdebug kept it locked.
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
    """Remove RUNTIME if it is empty and no other process has locked it."""
    if _exists(runtime()):
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
    where = f"; {paths.file_system(place or runtime())}" if number == errno.ENOSPC else ""
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
