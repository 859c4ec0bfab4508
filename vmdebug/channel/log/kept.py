"""Reads a console's log, whose oldest part is removed when it grows long; see `vmdebug.vm.guardian`.

The removed part is a hole: positions in the file stay valid, and SEEK_DATA of lseek(2) finds its end. On a
file system without holes nothing is removed, and the whole file is data.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Kept(NamedTuple):
    """The part of a log that was kept.

    Args:
        dropped: Number of bytes removed before it.
        data: The rest; it starts at the beginning of a line.
    """

    dropped: int
    data: bytes


def read_next(fd: int, size: int) -> bytes:
    """Read from a descriptor's position, after what was removed there; b"" at the end of the log.

    Args:
        fd: The log; its position moves.
        size: Number of bytes to read at most.
    """
    with suppress(OSError):  # the end of the log: there is no data
        os.lseek(fd, os.lseek(fd, 0, os.SEEK_CUR), os.SEEK_DATA)
    return os.read(fd, size)


def start(fd: int) -> int:
    """Return the position of the first line that was kept; 0 if nothing was removed."""
    try:
        data = os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:  # the log is empty
        return 0
    if not data:
        return 0
    line = os.pread(fd, _LONGEST_LINE, data).find(b"\n")
    return data + line + 1


def read(log: Path) -> Kept:
    """Read a log.

    Raises:
        OSError: it cannot be read.
    """
    with log.open("rb") as stream:
        dropped = start(stream.fileno())
        stream.seek(dropped)
        return Kept(dropped, stream.read())


_LONGEST_LINE = 1 << 16
