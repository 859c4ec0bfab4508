"""Network segments: networks that only the guests on them see.

The segment NAME exists from its first guest to its last. RUNTIME/.segments/NAME has the socket of its hub, a
process that passes on frames (`segment_hub`), the file that the hub keeps locked, and a file for each guest,
whose name is the guest's number.

QEMU inherits its connection to the hub, and the lock of its file. So the kernel frees both when QEMU ends,
however it ends: the hub ends with the last connection, and removes the directory. If the hub itself is
killed, the next vmdebug command removes what it has left.

A VM joins while it has RUNTIME locked, and a hub ends only while it has RUNTIME locked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from vmdebug import addressing, locks, network, process
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, StateError, UsageError, VmdebugError
from vmdebug.network import Nic
from vmdebug.vm import children, runtime_directory
from vmdebug.vm.rundir import SEGMENTS

LEAVE_SECONDS = 5.0
"""How long a hub may take to end after its last guest; a millisecond is usual."""

_HUB = Path(__file__).with_name("segment_hub.py")
_HUB_LOCK = "hub.lock"
"""The file that a hub keeps locked."""

_BACKLOG = 16


class Plugged(msgspec.Struct, frozen=True):
    """The network cards of a VM that is being launched.

    Args:
        nics: The cards, with all their addresses.
        connections: By the names of segments, descriptors of the connections to their hubs.
        locks: Descriptors of the locked files of its numbers. QEMU inherits both.
    """

    nics: tuple[Nic, ...] = ()
    connections: Mapping[str, int] = {}
    locks: tuple[int, ...] = ()

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors."""
        return (*self.connections.values(), *self.locks)


@contextlib.contextmanager
def plugged(nics: Sequence[Nic], vm: str, *, deadline: Deadline) -> Iterator[Plugged]:
    """Connect a VM to its segments, and choose the addresses of its network cards.

    QEMU must be started in the block; the VM leaves the segments with the last process that has the
    descriptors.

    Args:
        nics: The cards.
        vm: The name of the VM.
        deadline: When to give up waiting for another vmdebug.

    Raises:
        UsageError: a segment has no number left.
        StateError: the hub of a segment was killed.
        HostError: a hub cannot be started.
        DeadlineError: another vmdebug kept RUNTIME locked.
    """
    found: list[Nic] = []
    connections: dict[str, int] = {}
    held: list[int] = []
    with contextlib.ExitStack() as opened:
        for nic in nics:
            if nic.kind == "segment":
                number, connection, lock = _join(nic.segment, vm, deadline, opened)
                connections[nic.name] = connection
                held.append(lock)
                found.append(addressing.member(nic, number))
            else:
                found.append(_addressed(nic, vm))
        yield Plugged(tuple(found), connections, tuple(held))


def preview(nics: Sequence[Nic], vm: str) -> tuple[Nic, ...]:
    """Return the cards as `plugged` would at present, and join nothing."""
    return tuple(
        addressing.member(nic, _likely(runtime_directory.location() / SEGMENTS / nic.segment))
        if nic.kind == "segment"
        else _addressed(nic, vm)
        for nic in nics
    )


def _addressed(nic: Nic, vm: str) -> Nic:
    if nic.kind != "bridge":
        return nic
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = os.uname().nodename
    return addressing.bridged(nic, machine=f"{machine} {os.geteuid()}", vm=vm)


def _join(name: str, vm: str, deadline: Deadline, opened: contextlib.ExitStack) -> tuple[int, int, int]:
    """Return the VM's number on a segment, and the descriptors of its connection and its lock."""
    with runtime_directory.locked(deadline) as runtime:
        directory = runtime / SEGMENTS / name
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise runtime_directory.host_error(f"make {directory}", error) from error
        try:
            connection = opened.enter_context(_connected(directory, name, vm))
            number, lock = _number(directory, name, vm)
        except BaseException:
            if not _members(directory):
                shutil.rmtree(directory, ignore_errors=True)
            raise
        opened.callback(os.close, lock)
    return number, connection.fileno(), lock


def _connected(directory: Path, name: str, vm: str) -> socket.socket:
    """Return a connection to the hub, which is started unless it runs.

    A VM that was there before it was killed, and is restarted, starts it again for the others.
    """
    path = directory / "hub.sock"
    with contextlib.ExitStack() as protected:
        connection = protected.enter_context(socket.socket(socket.AF_UNIX))
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            there = _members(directory)
            if there and vm not in _numbers(directory).values():
                raise StateError(
                    f"the hub of the segment {name} was killed, and {', '.join(there)} have lost the segment",
                    hint=f"restart them: vmdebug restart {there[0]}; or choose another segment",
                ) from None
            _start_hub(directory, path, connection)
        protected.pop_all()
    return connection


def _start_hub(directory: Path, path: Path, first: socket.socket) -> None:
    """Start the hub, with its first connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise runtime_directory.host_error(f"make the socket {path}", error) from error
        listener.listen(_BACKLOG)
        first.connect(str(path))
        with (directory / _HUB_LOCK).open("wb") as lock, (directory / "hub.log").open("ab") as log:
            locks.try_lock(lock.fileno())
            words = (sys.executable, "-I", "-S", str(_HUB), str(directory), str(listener.fileno()))
            fds = (listener.fileno(), lock.fileno())
            children.adopt(process.start(words, stderr=log, session=True, pass_fds=fds))


def _number(directory: Path, name: str, vm: str) -> tuple[int, int]:
    """Return a number that no other guest has, and the descriptor of its locked file.

    A VM that was there before, and is restarted, gets its number again.
    """
    before = [number for number, who in _numbers(directory).items() if who == vm]
    for number in (*before, *range(1, network.LARGEST_SEGMENT + 1)):
        fd = os.open(directory / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if locks.try_lock(fd):
            os.ftruncate(fd, 0)
            os.pwrite(fd, vm.encode(), 0)
            return number, fd
        os.close(fd)
    raise UsageError(
        f"the segment {name} already has {network.LARGEST_SEGMENT} guests", hint="choose another segment"
    )


def _numbers(directory: Path) -> dict[int, str]:
    """Return the numbers that were given to VMs, with the names of the VMs."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            if path.name.isdigit():
                with contextlib.suppress(FileNotFoundError):
                    found[int(path.name)] = path.read_text(errors="replace")
    return dict(sorted(found.items()))


def _members(directory: Path) -> list[str]:
    """Return the names of the VMs on a segment."""
    return [who for number, who in _numbers(directory).items() if not _free(directory / str(number))]


def _likely(directory: Path) -> int:
    numbers = range(1, network.LARGEST_SEGMENT + 1)
    return next((number for number in numbers if _free(directory / str(number))), 1)


def _free(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return locks.try_lock(fd)
    finally:
        os.close(fd)


def settle(nics: Sequence[Nic]) -> None:
    """Wait until the hubs have ended that served only a VM that has ended.

    Args:
        nics: The network cards of that VM.
    """
    for nic in nics:
        if nic.kind == "segment":
            _settle(runtime_directory.location() / SEGMENTS / nic.segment)
    children.reap()


def _settle(directory: Path) -> None:
    with contextlib.suppress(DeadlineError):  # a stopped hub; `sweep` removes its directory after its end
        for pause in Deadline.after(LEAVE_SECONDS).pauses("the hub of a segment to end"):
            if not directory.exists() or _members(directory) or _abandoned(directory):
                break
            time.sleep(pause)
    sweep()


def sweep() -> None:
    """Remove the segments whose hub was killed and that have no guest any more."""
    registry = runtime_directory.location() / SEGMENTS
    if not registry.exists():
        return
    with (
        contextlib.suppress(VmdebugError, FileNotFoundError),
        runtime_directory.locked(Deadline.after(LEAVE_SECONDS)),
    ):
        for directory in registry.iterdir():
            if _abandoned(directory):
                shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # there are others
            registry.rmdir()


def _abandoned(directory: Path) -> bool:
    """Return whether a segment has neither a hub nor guests."""
    return _free(directory / _HUB_LOCK) and not _members(directory)
