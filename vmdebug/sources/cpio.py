"""Writes cpio archives, the format of initramfs.

The format is "newc" as the kernel reads it: Documentation/driver-api/early-userspace/buffer-format.rst and
init/initramfs.c. Owner, times and order are fixed, so that equal contents give equal bytes. Device nodes need
no root, since they are only entries in the archive.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in an archive, owned by root.

    Args:
        path: Its path without a leading slash: "bin/busybox".
        mode: Type and permission bits; see stat(2).
        data: The contents of a file, or the target of a symbolic link; otherwise empty.
        device: The major and minor number of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    """Return a directory."""
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """Return a regular file."""
    return Entry(path, stat.S_IFREG | permissions, data)


def link(path: str, target: str) -> Entry:
    """Return a symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def node(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """Return a character device; numbers as in Documentation/admin-guide/devices.txt."""
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """Return a newc archive of `entries` and their parent directories.

    Args:
        entries: The files, in any order; each path may occur once.

    Raises:
        ValueError: a path occurs twice.
    """
    by_path: dict[str, Entry] = {}
    for entry in entries:
        if entry.path in by_path:
            raise ValueError(f"{entry.path} is twice in the archive")
        by_path[entry.path] = entry
    for above in {above for path in by_path for above in _parents(path)}:
        by_path.setdefault(above, directory(above))
    # The kernel needs a directory before its contents: sorting does this.
    records = [_record(number, by_path[path]) for number, path in enumerate(sorted(by_path), start=1)]
    return b"".join([*records, _record(0, Entry(_TRAILER, 0))])


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")[:-1]
    return ("/".join(parts[: end + 1]) for end in range(len(parts)))


def _record(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    owner = time = 0
    # The device that the file is on, and a checksum; newc uses neither.
    held_major = held_minor = check = 0
    before = (number, entry.mode, owner, owner, links, time, len(entry.data), held_major, held_minor)
    fields = (*before, *entry.device, len(name), check)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
