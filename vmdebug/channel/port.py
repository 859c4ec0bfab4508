"""QEMU's end of a port into the guest: a socket that serves one client at a time.

QEMU accepts a second client only after the first has disconnected, and the second one cannot tell that it
waits. So each client first locks a file beside the socket. The kernel releases the lock when its holder ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vmdebug import locks
from vmdebug.deadline import Deadline

if TYPE_CHECKING:
    import socket

CHUNK = 1 << 18
"""Bytes to receive at once."""


class PortAddress(msgspec.Struct, frozen=True):
    """Where a port is on the host.

    Args:
        socket: QEMU's socket.
        lock: The file that the client keeps locked.
    """

    socket: Path
    lock: Path


class Ways(msgspec.Struct, frozen=True):
    """The host's ends of all ways into a guest.

    Args:
        ports: The agent's virtio-serial ports.
        uart: The agent's UART.
        guest_agent: qemu-guest-agent's port.
        console: The console's socket and its lock.
        log: The console's log.
        memory: The file that stores which way answered; see `channel.found`.
    """

    ports: Sequence[PortAddress]
    uart: PortAddress
    guest_agent: PortAddress
    console: PortAddress
    log: Path
    memory: Path


class Port:
    """An open port, which carries bytes to and from the guest. `take` and `try_take` open one."""

    def __init__(self, connection: socket.socket, lock: int) -> None:
        self._connection = connection
        self._lock = lock

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._connection.fileno()

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send as many bytes as QEMU accepts now, and return their number.

        Raises:
            ConnectionError: QEMU has ended.
        """
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes | None:
        """Return the bytes that have arrived; None if none have, b"" if QEMU has ended."""
        try:
            return self._connection.recv(CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Disconnect and unlock the port. QEMU reports the disconnection to the guest."""
        self._connection.close()
        os.close(self._lock)


def try_take(address: PortAddress) -> Port | None:
    """Connect to a port, and return it; None if another client uses it.

    Raises:
        FileNotFoundError: there is no such port, or QEMU has ended.
        ConnectionRefusedError: QEMU has ended.
    """
    import socket  # noqa: PLC0415 - slow to import, and most users of a run directory open no port

    with contextlib.ExitStack() as held:
        lock = os.open(address.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        held.callback(os.close, lock)
        if not locks.try_lock(lock):
            return None
        connection = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.connect(str(address.socket))
        connection.setblocking(False)
        held.pop_all()
    return Port(connection, lock)


def take(addresses: Sequence[PortAddress], *, what: str, deadline: Deadline) -> Port:
    """Connect to a free one of several ports; wait while all are in use.

    Args:
        addresses: The ports.
        what: What the caller waits for, for the error.
        deadline: When to give up.

    Raises:
        FileNotFoundError: there are no such ports, or QEMU has ended.
        ConnectionRefusedError: QEMU has ended.
        DeadlineError: all ports stayed in use.
    """
    for pause in deadline.pauses(what):
        for address in addresses:
            port = try_take(address)
            if port is not None:
                return port
        time.sleep(pause)
    raise AssertionError  # `pauses` raises at the deadline
