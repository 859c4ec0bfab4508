"""Files without a name: memory and states that are gone with the last process that uses them.

A process keeps such a file by a descriptor or a mapping, and another process of the
same user gets at it through /proc/PID/fd. Nothing is left to remove, whoever is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import msgspec

from vmdebug.errors import HostError
from vmdebug.process import ProcessRef

SPARE_MIB = 64
"""What has to be free beside the memory itself, for QEMU and the rest of the machine."""

MEMINFO = Path("/proc/meminfo")

_MIB = 1 << 20


class Shared(msgspec.Struct, frozen=True):
    """A nameless file as another process finds it.

    Args:
        holder: Who has it open.
        fd: Under which descriptor.
        inode: Its number, which tells it apart from a later one under the same descriptor.
    """

    holder: ProcessRef
    fd: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> Shared:
        """Return how others find a descriptor of this process."""
        me = ProcessRef.of(os.getpid())
        assert me is not None  # noqa: S101 - we are running
        return cls(me, fd, os.fstat(fd).st_ino)

    def open(self) -> int | None:
        """Return a descriptor of our own on it; None where its holder has let it go."""
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
    """Return a path by which a program that somebody else starts opens a descriptor of this process."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def make(name: str, directory: Path | None = None) -> int:
    """Return a descriptor of a new, empty, nameless file.

    Args:
        name: For people who look at /proc/PID/maps.
        directory: The file system it is on; None is shared memory, and unlike /dev/shm that has no limit
            of its own; see memfd_create(2).

    Raises:
        HostError: the directory cannot have one; see O_TMPFILE in open(2).
    """
    if directory is None:
        return os.memfd_create(f"vmdebug-{name}", os.MFD_CLOEXEC)
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(
            f"cannot keep a guest's memory in {directory}: {error.strerror}",
            hint="name a directory of a local file system that you may write to, such as /dev/shm",
        ) from error


def room(mib: int, directory: Path | None = None) -> str:
    """Say why there is no room for an amount of memory; "" where there is.

    Args:
        mib: How much may be needed at most, in MiB.
        directory: Where; None is shared memory.

    Raises:
        HostError: the directory is not there.
    """
    free = _free_memory() if directory is None else _free_space(directory)
    wanted = mib + SPARE_MIB
    if free is None or free >= wanted:
        return ""
    where = "memory" if directory is None else str(directory)
    return f"the template of a guest with {mib} MiB wants {wanted} MiB free, and {where} has {free} MiB"


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
    # No blocks at all: a file system that does not count them.
    return free.f_bavail * free.f_frsize // _MIB if free.f_blocks else None


def fill(fd: int, data: bytes) -> None:
    """Put bytes into a nameless file, as all that is in it."""
    os.ftruncate(fd, 0)
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)


def content(fd: int) -> bytes:
    """Return all that is in a nameless file."""
    size = os.fstat(fd).st_size
    data = b""
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    return data
