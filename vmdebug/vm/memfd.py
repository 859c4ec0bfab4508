"""Unnamed files, for memory and states: the kernel frees them with the last process that uses them.

They are memory by memfd_create(2), or O_TMPFILE files of open(2). A process keeps one by a descriptor or a
mapping, and another process of the same user opens it through /proc/PID/fd. Nothing has to be removed, even
when a process is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmdebug.errors import HostError
from vmdebug.process import ProcessRef

MARGIN_MIB = 64
"""MiB that have to be free beside the memory itself, for QEMU and the rest of the machine."""

MEMINFO = Path("/proc/meminfo")

_MIB = 1 << 20

_CHUNK = 1 << 20


class SharedFile(msgspec.Struct, frozen=True):
    """How another process opens an unnamed file.

    Args:
        holder: The process that has it open.
        fd: The descriptor there.
        inode: Its number, which tells it apart from a later file under the same descriptor.
    """

    holder: ProcessRef
    fd: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> SharedFile:
        """Return how others open a file of this process."""
        return cls(ProcessRef.me(), fd, os.fstat(fd).st_ino)

    def open(self) -> int | None:
        """Return a descriptor of this process; None where the holder has closed the file."""
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
    """Return a path by which another program opens a file of this process."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def create(name: str, directory: Path | None = None) -> int:
    """Return a descriptor of a new, empty, unnamed file.

    Args:
        name: Shown in /proc/PID/maps.
        directory: The file system for it; None is shared memory, which unlike /dev/shm has no limit of its
            own.

    Raises:
        HostError: the directory cannot have unnamed files; see O_TMPFILE in open(2).
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


def shortage(mib: int, directory: Path | None = None) -> str:
    """Return why there is no room for an amount of memory; "" where there is room.

    Args:
        mib: The most that may be needed, in MiB.
        directory: Where; None is shared memory.

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
    # A file system that does not count blocks has 0 of them.
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
    """Return a descriptor after making a stack close it."""
    stack.callback(os.close, fd)
    return fd


@contextlib.contextmanager
def piped(fd: int) -> Iterator[int]:
    """Yield the reading end of a pipe through which a file's content goes, once; closed after the block.

    A program that reads a stream takes a pipe without starting `cat`.

    Args:
        fd: The file's descriptor; its offset does not change.
    """
    reading, writing = os.pipe()
    # It has a descriptor of its own, and ends with the last reader: nobody has to wait for it.
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
