"""Templates that several processes use: who has one, so that another can join.

RUNTIME/.templates/KEY.json names the processes that have the template's files open. Its
lock is held while a template is looked for, made or let go, so that of four processes
that want the same one, one boots it and three wait. The file is only where to look: the
memory itself is the kernel's to free, with the last that has it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from vmdebug import guest
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.process import ProcessRef
from vmdebug.vm import lock, rundir
from vmdebug.vm.saved.nameless import Shared

DIRECTORY = ".templates"
"""In RUNTIME; no VM's name begins with a dot."""

How = Literal["clone", "snapshot", "boot"]

_TIDY_SECONDS = 1.0

WAITED_FOR = "another process to make the template"


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What one process has of a template.

    Args:
        holder: The process.
        files: Where its state, its console's log and, where that is apart, its RAM are; none where
            each VM boots.
    """

    holder: ProcessRef
    files: tuple[Shared, ...] = ()


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A template, by those who hold it.

    Args:
        how: Which way its VMs are made.
        reason: Why not a better one.
        holders: Who has it.
    """

    how: How
    reason: str
    holders: tuple[Held, ...]


class Slot:
    """The place of one template while its lock is held; `slot` makes one.

    Args:
        fd: Its locked file.
        path: That file's path.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def read(self) -> Entry | None:
        """Return the template with those of its holders that live; None where there is none."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        try:
            found = guest.decode(data, Entry)
        except msgspec.MsgspecError:
            return None  # new, or of another vmdebug
        living = tuple(each for each in found.holders if each.holder.alive())
        return msgspec.structs.replace(found, holders=living) if living else None

    def write(self, entry: Entry) -> None:
        """Write down who has it.

        Raises:
            HostError: there is no space.
        """
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, guest.encode(entry), 0)
        except OSError as error:
            raise rundir.host_error(f"write {self._path}", error) from error

    def leave(self, mine: Held) -> None:
        """Strike off one that was written down; with the last one the file goes."""
        found = self.read()
        holders = [] if found is None else list(found.holders)
        if mine in holders:
            holders.remove(mine)
        if found is not None and holders:
            self.write(msgspec.structs.replace(found, holders=tuple(holders)))
        else:
            self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def slot(key: str, *, deadline: Deadline) -> Iterator[Slot]:
    """Hold the place of a template, which is made if it is not there.

    Args:
        key: What tells it from others.
        deadline: Until when to wait for who holds it.

    Raises:
        HostError: it cannot be made.
        DeadlineError: somebody held it all the time.
    """
    path = rundir.runtime() / DIRECTORY / f"{key}.json"
    fd = _locked(path, deadline)
    try:
        yield Slot(fd, path)
    finally:
        # Nothing in it: there was to be something, and then there was not.
        if not os.fstat(fd).st_size:
            path.unlink(missing_ok=True)
        os.close(fd)
        _tidy(path.parent)


def sweep() -> None:
    """Remove what names no living process any more; a place that is in use is left alone."""
    directory = rundir.runtime() / DIRECTORY
    with contextlib.suppress(OSError):
        for path in list(directory.iterdir()):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if lock.free(fd) and Slot(fd, path).read() is None:
                    path.unlink(missing_ok=True)
            finally:
                os.close(fd)
        _tidy(directory)


def _locked(path: Path, deadline: Deadline) -> int:
    while True:
        fd = _opened(path, deadline)
        try:
            lock.take(fd, what=WAITED_FOR, deadline=deadline)
            if rundir.same(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed while we waited: what we locked has no name any more


def _opened(path: Path, deadline: Deadline) -> int:
    with rundir.locked(deadline):
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise rundir.host_error(f"make {path}", error) from error


def _tidy(directory: Path) -> None:
    """Remove the directory if it is empty, and RUNTIME if it was all; who makes files in it holds RUNTIME."""
    with contextlib.suppress(VmdebugError, FileNotFoundError):
        if directory.exists():
            with rundir.locked(Deadline.after(_TIDY_SECONDS)), contextlib.suppress(OSError):
                directory.rmdir()
