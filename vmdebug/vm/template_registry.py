"""The registry of templates that processes share.

RUNTIME/.templates/KEY.json names the processes that have the template's files open. A process locks it while
it looks up, makes or closes a template: if four processes need the same one, one boots it and three wait. The
kernel frees the memory with the last process that has it open.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from vmdebug import guest, locks
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.process import ProcessRef
from vmdebug.vm import runtime_directory
from vmdebug.vm.memfd import SharedFile

DIRECTORY = ".templates"
"""Directory of the registry in RUNTIME; no VM's name begins with a dot."""

How = Literal["clone", "load", "boot"]

WAITED_FOR = "another process to make the template"


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a template that one process has open.

    Args:
        holder: The process.
        files: The state, the console's log and, if it is a separate file, the RAM. Empty if each VM boots.
    """

    holder: ProcessRef
    files: tuple[SharedFile, ...] = ()


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A template in the registry.

    Args:
        how: How its VMs are made.
        reason: Why they are not made in a faster way.
        holders: The processes that have it open.
    """

    how: How
    reason: str
    holders: tuple[Held, ...]


class Slot:
    """A template's registry file while it is locked; made by `slot`.

    Args:
        fd: The locked file.
        path: Its path.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def read(self) -> Entry | None:
        """Return the template with its living holders; None if it has none."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        try:
            found = guest.decode(data, Entry)
        except msgspec.MsgspecError:
            return None  # the file is new, or from another version of vmdebug
        living = tuple(each for each in found.holders if each.holder.alive())
        return msgspec.structs.replace(found, holders=living) if living else None

    def write(self, entry: Entry) -> None:
        """Write the entry.

        Raises:
            HostError: there is no space.
        """
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, guest.encode(entry), 0)
        except OSError as error:
            raise runtime_directory.host_error(f"write {self._path}", error) from error

    def leave(self, mine: Held) -> None:
        """Remove a holder, and the file with the last one."""
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
    """Lock a template's file; make it if it does not exist.

    Args:
        key: The template's hash.
        deadline: When to give up waiting for another process.

    Raises:
        HostError: it cannot be made.
        DeadlineError: another process kept it locked.
    """
    path = runtime_directory.location() / DIRECTORY / f"{key}.json"
    fd = _locked(path, deadline)
    try:
        yield Slot(fd, path)
    finally:
        # It is empty if the template could not be made.
        if not os.fstat(fd).st_size:
            path.unlink(missing_ok=True)
        os.close(fd)
        _tidy(path.parent)


def sweep() -> None:
    """Remove the files without a living process, except locked ones."""
    directory = runtime_directory.location() / DIRECTORY
    with contextlib.suppress(OSError):
        for path in list(directory.iterdir()):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if locks.try_lock(fd) and Slot(fd, path).read() is None:
                    path.unlink(missing_ok=True)
            finally:
                os.close(fd)
        _tidy(directory)


def _locked(path: Path, deadline: Deadline) -> int:
    while True:
        fd = _opened(path, deadline)
        try:
            locks.lock(fd, what=WAITED_FOR, deadline=deadline)
            if runtime_directory.same(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the file was removed meanwhile, so this lock has no effect


def _opened(path: Path, deadline: Deadline) -> int:
    with runtime_directory.locked(deadline):
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise runtime_directory.host_error(f"make {path}", error) from error


def _tidy(directory: Path) -> None:
    """Remove the directory, and then RUNTIME, if they are empty. RUNTIME is locked while a file is made."""
    with contextlib.suppress(VmdebugError, FileNotFoundError):
        if directory.exists():
            with (
                runtime_directory.locked(Deadline.after(runtime_directory.TIDY_SECONDS)),
                contextlib.suppress(OSError),
            ):
                directory.rmdir()
