"""Reads trees of files on this machine: as tar archives, and files with holes without the holes."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from vmdebug.errors import HostError

BLOCK = 1 << 16
"""The size of the blocks in which files with holes are sent, in bytes; `put.sh` has the same number."""

SMALLEST_HOLE = 1 << 20
"""Bytes. A smaller hole is sent as zeros, because each piece of data starts a program in the guest."""

_READ = 1 << 18
_FORMAT: Literal[1] = tarfile.GNU_FORMAT
"""A format that busybox reads, and that has no limit for names and sizes. Its times are whole seconds."""

_END = bytes(2 * tarfile.BLOCKSIZE)

Runs = list[tuple[int, int]]
"""The data of a file with holes: the first byte, a multiple of BLOCK, and the number of bytes."""


def block_runs(path: Path, status: os.stat_result) -> Runs | None:
    """Return where the data of a file with large holes is; None if it has no large holes.

    Args:
        path: A regular file.
        status: Its status.
    """
    if status.st_blocks * 512 + SMALLEST_HOLE > status.st_size:
        return None
    runs: Runs = []
    end = 0
    with path.open("rb") as stream:
        while end < status.st_size:
            try:
                start = os.lseek(stream.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    break
                raise
            end = min(os.lseek(stream.fileno(), start, os.SEEK_HOLE), status.st_size)
            start -= start % BLOCK
            if runs and start - sum(runs[-1]) < SMALLEST_HOLE:
                start = runs.pop()[0]
            runs.append((start, end - start))
    return None if runs == [(0, status.st_size)] else runs


def read_runs(path: Path, runs: Sequence[tuple[int, int]], *, padded: bool = False) -> Iterator[bytes]:
    """Yield the data of a file in pieces.

    Args:
        path: A regular file.
        runs: The data to read; see `Runs`.
        padded: Whether to fill the last block of each run with zeros.

    Raises:
        HostError: the file has become shorter.
    """
    with path.open("rb") as stream:
        for start, size in runs:
            stream.seek(start)
            left = size
            while left:
                data = stream.read(min(_READ, left))
                if not data:
                    raise HostError(f"{path} became shorter while it was copied", hint="copy it again")
                left -= len(data)
                yield data
            if padded:
                yield bytes(-size % BLOCK)


class Tree:
    """A directory to send: first the files with holes, then an archive of the rest, without sockets.

    In the archive, a directory comes after its content: unpacking a file changes the time of its directory.

    Args:
        top: The directory.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, top: Path) -> None:
        self.with_holes: list[tuple[str, Runs, os.stat_result]] = []
        """The files with holes: name below `top`, data, status."""
        self.size = 0
        """Bytes of data that `stream` yields, without the archive's headers."""
        self._top = top
        self._names: list[str] = []
        self._read()

    def stream(self) -> Iterator[bytes]:
        """Yield the data of the files with holes, padded to whole blocks, and the archive."""
        for name, runs, _ in self.with_holes:
            yield from read_runs(self._top / name, runs, padded=True)
        links: dict[tuple[int, int], str] = {}
        for name in self._names:
            yield from self._member(name, links)
        yield _END

    def _read(self) -> None:
        for directory, below, files in os.walk(self._top, topdown=False, onerror=_raise):
            links = [name for name in below if Path(directory, name).is_symlink()]
            for each in sorted([*files, *links]):
                path = Path(directory, each)
                name, status = str(path.relative_to(self._top)), path.lstat()
                if stat.S_ISSOCK(status.st_mode):
                    continue
                runs = None
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                    runs = block_runs(path, status)
                if runs is None:
                    self._names.append(name)
                    self.size += status.st_size if stat.S_ISREG(status.st_mode) else 0
                else:
                    self.with_holes.append((name, runs, status))
                    self.size += sum(size for _, size in runs)
            self._names.append(os.path.relpath(directory, self._top))

    def _member(self, name: str, links: dict[tuple[int, int], str]) -> Iterator[bytes]:
        path = self._top / name
        status = path.lstat()
        info = tarfile.TarInfo(name)
        info.mode, info.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
        info.type = _TYPES[stat.S_IFMT(status.st_mode)]
        if info.issym():
            info.linkname = str(path.readlink())
        elif info.ischr() or info.isblk():
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif info.isreg() and status.st_nlink > 1:
            first = links.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                info.type, info.linkname = tarfile.LNKTYPE, first
        info.size = status.st_size if info.isreg() else 0
        yield info.tobuf(_FORMAT, "utf-8", "surrogateescape")
        if info.isreg():
            yield from read_runs(path, [(0, info.size)])
            yield bytes(-info.size % tarfile.BLOCKSIZE)


_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


def _raise(error: OSError) -> None:
    raise error
