"""The hub of a network segment: a process that passes each frame of a guest on to all other guests.

It runs as a program of its own, without other modules of vmdebug, and ends when the last guest has left; see
`vmdebug.vm.segment`. A frame is four bytes with its length and its content, as QEMU's `-netdev stream` sends
it; see net/stream.c of QEMU.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import shutil
import socket
import sys
from pathlib import Path

QUEUED = 1 << 20
"""Bytes that may wait for a guest that does not read them, as one that GDB has stopped; more are dropped."""

LONGEST_FRAME = 1 << 17
"""Longer than any frame: QEMU's largest buffer has 68 KiB."""

_HEADER = 4
_READ = 1 << 18


class Member:
    """The connection of one guest.

    Args:
        connection: The socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._received = bytearray()
        self._waiting = bytearray()

    def receive(self) -> bytes | None:
        """Return the complete frames that have arrived; None if the guest has left."""
        try:
            data = self.connection.recv(_READ)
        except BlockingIOError:
            return b""
        except OSError:
            return None
        self._received += data
        end = _complete(self._received)
        if not data or end is None:
            return None
        frames = bytes(self._received[:end])
        del self._received[:end]
        return frames

    def send(self, frames: bytes) -> bool:
        """Send frames, or keep them for later; return whether some have to wait."""
        if len(self._waiting) <= QUEUED:
            self._waiting += frames
        return self.flush()

    def flush(self) -> bool:
        """Send what waits; return whether some still has to."""
        # If the guest has left, its next `receive` says so.
        with contextlib.suppress(OSError):
            del self._waiting[: self.connection.send(self._waiting)]
        return bool(self._waiting)


def _complete(data: bytearray) -> int | None:
    """Return where the last complete frame ends; None if the data are not frames."""
    end = 0
    while len(data) - end >= _HEADER:
        length = int.from_bytes(data[end : end + _HEADER], "big")
        if not 0 < length <= LONGEST_FRAME:
            return None
        if len(data) - end < _HEADER + length:
            break
        end += _HEADER + length
    return end


def serve(listener: socket.socket) -> None:
    """Pass on frames until no guest is connected.

    Args:
        listener: The listening socket; the first guest has already connected to it.
    """
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        members: list[Member] = []
        while True:
            ready = selector.select()
            # A guest that has connected gets the frames that are passed on now.
            _accept(listener, selector, members)
            for key, events in ready:
                if events & selectors.EVENT_WRITE:
                    _watch(selector, key.data, waiting=key.data.flush())
                if events & selectors.EVENT_READ and key.fileobj is not listener:
                    _pass_on(selector, members, key.data)
            if not members:
                break


def _accept(listener: socket.socket, selector: selectors.BaseSelector, members: list[Member]) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            member = Member(listener.accept()[0])
            members.append(member)
            selector.register(member.connection, selectors.EVENT_READ, member)


def _pass_on(selector: selectors.BaseSelector, members: list[Member], member: Member) -> None:
    frames = member.receive()
    if frames is None:
        members.remove(member)
        selector.unregister(member.connection)
        member.connection.close()
    elif frames:
        for other in members:
            if other is not member:
                _watch(selector, other, waiting=other.send(frames))


def _watch(selector: selectors.BaseSelector, member: Member, *, waiting: bool) -> None:
    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0)
    selector.modify(member.connection, events, member)


def leave(listener: socket.socket, directory: Path) -> bool:
    """Remove the segment's directory, unless a guest has connected; return whether it is removed.

    A guest connects while vmdebug has locked RUNTIME.

    Args:
        listener: The listening socket.
        directory: RUNTIME/.segments/NAME.
    """
    registry = directory.parent
    try:
        runtime = os.open(registry.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(runtime, fcntl.LOCK_EX)
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            if selector.select(0):
                return False
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # another segment, or a VM, is in it
            registry.rmdir()
            registry.parent.rmdir()
        return True
    finally:
        os.close(runtime)


def main(directory: str, descriptor: str) -> None:
    """Serve a segment.

    Args:
        directory: Its directory.
        descriptor: The number of the listening socket.
    """
    with socket.socket(fileno=int(descriptor)) as listener:
        while True:
            serve(listener)
            if leave(listener, Path(directory)):
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
