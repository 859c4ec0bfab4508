"""Unnamed files for memory and states, which the kernel frees with the last process that uses them.

They are made by memfd_create(2), or by open(2) with O_TMPFILE. A descriptor or a mapping keeps a file;
another process of the same user opens it through /proc/PID/fd. No file is left behind, even if a process is
killed; on a file system without O_TMPFILE an empty one, if that happens before its name is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmdebug import paths
from vmdebug.errors import HostError
from vmdebug.process import ProcessRef

MARGIN_MIB = 64
"""MiB that must stay free, for QEMU and the rest of the machine."""

MEMINFO = Path("/proc/meminfo")

_MIB = 1 << 20

_CHUNK = 1 << 20

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR)
"""Errors of file systems and kernels without O_TMPFILE; see open(2)."""


class SharedFile(msgspec.Struct, frozen=True):
    """How another process opens an unnamed file.

    Args:
        holder: The process that has it open.
        fd: The descriptor there.
        inode: Its inode number, which differs from that of a later file with the same descriptor.
    """

    holder: ProcessRef
    fd: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> SharedFile:
        """Return how other processes open a file of this process."""
        return cls(ProcessRef.me(), fd, os.fstat(fd).st_ino)

    def open(self) -> int | None:
        """Open the file, and return its descriptor; None if the holder has closed it."""
        if not self.holder.alive():
            return None
        try:
            fd = os.open(f"/proc/{self.holder.pid}/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        if os.fstat(fd).st_ino == self.inode:
            return fd
        os.close(fd)
        return None


def path(fd: int) -> str:
    """Return a path with which another program can open a file of this process."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def create(name: str, directory: Path | None = None) -> int:
    """Return a descriptor of a new, empty, unnamed file.

    Args:
        name: Shown in /proc/PID/maps.
        directory: A directory of the file system to use; None: memory, without the size limit of /dev/shm.

    Raises:
        HostError: the file cannot be made in the directory.
    """
    if directory is None:
        return os.memfd_create(f"vmdebug-{name}", os.MFD_CLOEXEC)
    try:
        return _unnamed(name, directory)
    except OSError as error:
        full = f"; {paths.file_system(directory)}" if error.errno == errno.ENOSPC else ""
        raise HostError(
            f"cannot keep a guest's memory in {directory}: {error.strerror}{full}",
            hint="name a directory of a local file system that you may write to, such as /dev/shm",
        ) from error


def _unnamed(name: str, directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    fd, named = tempfile.mkstemp(dir=directory, prefix=f".vmdebug-{name}.")
    Path(named).unlink()
    return fd


def shortage(mib: int, directory: Path | None = None) -> str:
    """Return why there is not enough space for an amount of memory; "" if there is.

    Args:
        mib: The largest amount needed, in MiB.
        directory: The directory to use; None: memory.

    Raises:
        HostError: the directory does not exist.
    """
    free = _free_memory() if directory is None else _free_space(directory)
    wanted = mib + MARGIN_MIB
    if free is None or free >= wanted:
        return ""
    where = "memory" if directory is None else str(directory)
    return f"the template of a guest with {mib} MiB needs {wanted} MiB free, and {where} has {free} MiB"


def _free_memory() -> int | None:
    """Return MemAvailable in MiB; see proc(5)."""
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable: +(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) // 1024
    return None


def _free_space(directory: Path) -> int | None:
    try:
        free = os.statvfs(directory)
    except OSError as error:
        raise HostError(
            f"cannot keep a guest's memory in {directory}: {error.strerror}", hint="name another directory"
        ) from error
    # Some file systems do not count blocks, and report 0.
    return free.f_bavail * free.f_frsize // _MIB if free.f_blocks else None


def write(fd: int, data: bytes) -> None:
    """Replace a file's content."""
    os.ftruncate(fd, 0)
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)


def read(fd: int) -> bytes:
    """Return a file's content."""
    size = os.fstat(fd).st_size
    data = b""
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    return data


def closed_by(stack: contextlib.ExitStack, fd: int) -> int:
    """Register a descriptor to be closed by a stack, and return it."""
    stack.callback(os.close, fd)
    return fd


@contextlib.contextmanager
def piped(fd: int) -> Iterator[int]:
    """Yield the reading end of a pipe, into which a thread writes a file's content once.

    QEMU can read a migration stream from a pipe, without a `cat` process.

    Args:
        fd: The file's descriptor; its offset does not change.
    """
    reading, writing = os.pipe()
    # The thread has a descriptor of its own, and ends when the reading end is closed.
    copying = threading.Thread(target=_copy, args=(os.dup(fd), writing), name="vmdebug-pipe", daemon=True)
    copying.start()
    try:
        yield reading
    finally:
        os.close(reading)


def _copy(fd: int, writing: int) -> None:
    try:
        offset = 0
        with contextlib.suppress(BrokenPipeError):
            while data := os.pread(fd, _CHUNK, offset):
                offset += os.write(writing, data)
    finally:
        os.close(fd)
        os.close(writing)
