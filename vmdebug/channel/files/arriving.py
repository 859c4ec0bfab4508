"""Writes what the guest sends: a file, or a directory as a tar archive.

The guest is not trusted: vmdebug writes nothing outside the copy, and follows no link that the guest sent.
It writes a copy beside its final place, and renames it when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Protocol, Self

from vmdebug.channel.files.archive import BLOCK
from vmdebug.channel.files.moving import Progress
from vmdebug.channel.shell import Sink
from vmdebug.errors import UsageError, VmError

_ZEROS = bytes(BLOCK)
_MODE = 0o1777
"""The mode bits to keep; not set-user-ID: a program from the guest must not run as this user for others."""

_ELSEWHERE = "copy to another name"

_LONGEST_HEAD = 200
_JOIN_SECONDS = 60.0


class Receiver:
    """Receives the output of `get.sh`; a context manager that removes an unfinished copy.

    Args:
        target: The path of the copy; or a function that gets the data of a file.
        progress: Counts the bytes.
        directory: Whether only a directory may get this path.
    """

    def __init__(self, target: Path | Sink, progress: Progress, *, directory: bool = False) -> None:
        self._target = target
        self._directory = directory
        self._progress = progress
        self._head = b""
        self._part: _Part | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            self._part.discard()

    def __call__(self, data: bytes) -> None:
        """Receive a piece of the output."""
        if self._part is None:
            self._head += data
            head, newline, data = self._head.partition(b"\n")
            if not newline:
                if len(self._head) > _LONGEST_HEAD:
                    raise VmError("the guest's shell did not answer as get.sh does", detail=repr(self._head))
                return
            self._part = self._begin(head.decode(errors="replace").split())
        if data:
            self._progress(len(data))
            self._part.write(data)

    def finish(self) -> None:
        """Give the copy its name.

        Raises:
            OSError: it cannot be written.
            VmError: the guest did not send all of it.
        """
        if self._part is None:
            raise VmError("the guest's shell printed nothing", hint="try it again")
        self._part.finish()

    def _begin(self, words: list[str]) -> _Part:
        match words:
            case ["file", mode, mtime, size]:
                self._progress.total = int(size) or None
                if not isinstance(self._target, Path):
                    return _Passed(self._target)
                if self._directory:
                    raise UsageError(
                        f"there is no directory {self._target}/", hint="make it, or copy elsewhere"
                    )
                return _file(self._target, int(mode, 8), int(mtime))
            case ["directory"] if isinstance(self._target, Path):
                return _Tree(self._target)
            case ["directory"]:
                raise UsageError("it is a directory in the guest; only a file can be written to stdout")
        raise VmError("the guest's shell did not answer as get.sh does", detail=" ".join(words))


class _Part(Protocol):
    """A copy that is not complete yet."""

    def write(self, data: bytes, /) -> object:
        """Take data."""

    def finish(self) -> None:
        """Give the copy its name."""

    def discard(self) -> None:
        """Remove it, unless it is finished."""


class _Passed:
    """A file whose data goes to a function."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: bytes, /) -> object:
        return self._sink(data)

    def finish(self) -> None:
        """Do nothing."""

    def discard(self) -> None:
        """Do nothing."""


def _file(target: Path, mode: int, mtime: int) -> _Part:
    if target.is_dir():
        raise UsageError(f"{target} is a directory, but the source is a file", hint=_ELSEWHERE)
    if target.exists() and not target.is_file():  # a pipe, /dev/null
        return _Passed(_writer(target))
    return _File(target, mode, mtime)


def _writer(target: Path) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        with _named(target), target.open("ab") as stream:
            stream.write(data)

    return write


class _Holes:
    """Writes a file; blocks of zeros become holes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Write data."""
        data = self._rest + data
        whole = len(data) - len(data) % BLOCK
        for start in range(0, whole, BLOCK):
            block = data[start : start + BLOCK]
            if block == _ZEROS:
                self._stream.seek(BLOCK, os.SEEK_CUR)
            else:
                self._stream.write(block)
        self._rest = data[whole:]

    def end(self) -> None:
        """Write the rest; the file then has its size."""
        self._stream.write(self._rest)
        self._stream.truncate()
        self._stream.flush()


class _File:
    """A file that the guest sends."""

    def __init__(self, target: Path, mode: int, mtime: int) -> None:
        self._target = Path(os.path.realpath(target)) if target.exists() else target
        self._mode, self._mtime = mode, mtime
        fd, name = tempfile.mkstemp(dir=self._target.parent, prefix=".vmdebug-cp.")
        self._temporary = Path(name)
        self._stream = os.fdopen(fd, "wb")
        self._holes = _Holes(self._stream)

    def write(self, data: bytes) -> None:
        with _named(self._target):
            self._holes.write(data)

    def finish(self) -> None:
        with _named(self._target):
            self._holes.end()
            self._stream.close()
        self._temporary.chmod(self._mode & _MODE)
        os.utime(self._temporary, (self._mtime, self._mtime))
        self._temporary.replace(self._target)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()
        self._temporary.unlink(missing_ok=True)


class _Tree:
    """A directory that the guest sends, and a thread unpacks."""

    def __init__(self, target: Path) -> None:
        if target.exists() and not target.is_dir():
            raise _not_directory(target)
        self._target = Path(os.path.realpath(target))
        self._part = Path(tempfile.mkdtemp(dir=self._target.parent, prefix=".vmdebug-cp."))
        self._failure: Exception | None = None
        reading, writing = os.pipe()
        self._pipe = os.fdopen(writing, "wb", buffering=0)
        self._thread = threading.Thread(target=self._unpack, args=(reading,), daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._pipe.write(rest) :]
        except BrokenPipeError:
            self._end()

    def finish(self) -> None:
        self._end()
        _merge(self._part / "tree", self._target)

    def discard(self) -> None:
        with contextlib.suppress(Exception):
            self._end()
        # Without write permission on a directory, its files cannot be removed.
        for directory, _, _ in os.walk(self._part):
            os.chmod(directory, 0o700)  # noqa: PTH101 - a walk has text
        shutil.rmtree(self._part, ignore_errors=True)

    def _end(self) -> None:
        self._pipe.close()
        self._thread.join(_JOIN_SECONDS)
        if self._failure is not None:
            raise self._failure

    def _unpack(self, reading: int) -> None:
        try:
            with os.fdopen(reading, "rb") as stream:
                unpack(stream, self._part / "tree")
                while stream.read(BLOCK):
                    pass
        except (OSError, tarfile.TarError, VmError) as error:
            self._failure = (
                error
                if not isinstance(error, tarfile.TarError)
                else VmError("the directory did not arrive complete", hint="copy it again", detail=str(error))
            )


def unpack(stream: IO[bytes], top: Path) -> None:
    """Unpack an archive into a new directory.

    Args:
        stream: The archive.
        top: The directory to make.

    Raises:
        VmError: a member would be outside the directory.
        tarfile.TarError: it is not a complete archive.
        OSError: it cannot be written.
    """
    top.mkdir(mode=0o700)
    directories: dict[Path, tarfile.TarInfo] = {}
    with tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape", encoding="utf-8") as archive:
        for member in archive:
            path = _below(top, member.name)
            if member.isdir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                directories[path] = member
            elif member.isreg() or member.issym() or member.islnk():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(archive, member, path, top)
    for path in sorted(directories, key=lambda each: len(each.parts), reverse=True):
        path.chmod(directories[path].mode & _MODE)
        os.utime(path, (directories[path].mtime,) * 2)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, top: Path) -> None:
    if member.issym():
        path.symlink_to(member.linkname)
        os.utime(path, (member.mtime,) * 2, follow_symlinks=False)
    elif member.islnk():
        path.hardlink_to(_below(top, member.linkname))
    else:
        data = archive.extractfile(member)
        assert data is not None  # noqa: S101 - it is a regular file
        with _named(path), path.open("xb") as stream:
            holes = _Holes(stream)
            while piece := data.read(BLOCK):
                holes.write(piece)
            holes.end()
        path.chmod(member.mode & _MODE)
        os.utime(path, (member.mtime,) * 2)


def _below(top: Path, name: str) -> Path:
    """Return the path of a member, below `top` and not behind a link.

    Raises:
        VmError: it would be elsewhere.
    """
    parts = [part for part in PurePosixPath(name).parts if part != "."]
    path = top
    for part in parts:
        if part in ("..", "/") or path.is_symlink():
            raise VmError(f"the guest's archive has a file outside the directory: {name!r}")
        path /= part
    return path


def _merge(source: Path, target: Path) -> None:
    """Move a directory to a path; if there is a directory already, move the content into it."""
    if not target.exists():
        source.rename(target)
        return
    status = source.stat()
    source.chmod(0o700)
    for each in sorted(source.iterdir()):
        other = target / each.name
        directory = each.is_dir() and not each.is_symlink()
        if directory and other.is_dir():
            _merge(each, other)
        elif directory and other.exists():
            raise _not_directory(other)
        elif other.is_dir() and not other.is_symlink():
            raise UsageError(f"{other} is a directory, but the source is a file", hint=_ELSEWHERE)
        else:
            each.replace(other)
    target.chmod(stat.S_IMODE(status.st_mode))
    os.utime(target, (status.st_mtime,) * 2)


def _not_directory(path: Path) -> UsageError:
    return UsageError(f"{path} exists and is not a directory, but the source is a directory", hint=_ELSEWHERE)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path of the file to an error of write(2), which has none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
