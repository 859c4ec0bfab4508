"""QEMU's end of a port into the guest: a socket that one client has at a time.

QEMU accepts a second client only once the first has gone, and does not tell it: so a client locks a file
beside the socket first. The lock ends with its holder however that ends, as the connection does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmdebug import locks
from vmdebug.deadline import Deadline

CHUNK = 1 << 18
"""Bytes received at once."""


@dataclass(frozen=True, slots=True)
class PortAddress:
    """Where a port is on the host.

    Args:
        socket: QEMU's socket.
        lock: The file that its client holds locked.
    """

    socket: Path
    lock: Path


@dataclass(frozen=True, slots=True)
class Ways:
    """Where the ways into a guest are on the host.

    Args:
        ports: The agent's virtio-serial ports.
        uart: The agent's UART.
        guest_agent: qemu-guest-agent's port.
        console: The console's socket and its lock.
        log: The console's log.
        memory: The file that remembers which one answered.
    """

    ports: Sequence[PortAddress]
    uart: PortAddress
    guest_agent: PortAddress
    console: PortAddress
    log: Path
    memory: Path


class Port:
    """An open port: bytes to the guest and from it. `take` and `try_take` make one."""

    def __init__(self, connection: socket.socket, lock: int) -> None:
        self._connection = connection
        self._lock = lock

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._connection.fileno()

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the guest takes at once, and return how many bytes that was.

        Raises:
            ConnectionError: QEMU has ended.
        """
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes | None:
        """Return what has arrived; None where nothing has, b"" where QEMU has ended."""
        try:
            return self._connection.recv(CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Disconnect, which the guest is told, and let the next client have it."""
        self._connection.close()
        os.close(self._lock)


def try_take(address: PortAddress) -> Port | None:
    """Connect to a port; None where another client has it.

    Raises:
        FileNotFoundError: there is no such port; or QEMU has ended, as does
        ConnectionRefusedError: QEMU has ended.
    """
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
    """Connect to one of several ports that no other client has, waiting for one where all are in use.

    Args:
        addresses: The ports.
        what: What the caller waits for where all are in use, for the error.
        deadline: Until when.

    Raises:
        FileNotFoundError: there are no such ports; or QEMU has ended, as does
        ConnectionRefusedError: QEMU has ended.
        DeadlineError: all were in use all the time.
    """
    for pause in deadline.pauses(what):
        for address in addresses:
            port = try_take(address)
            if port is not None:
                return port
        time.sleep(pause)
    raise AssertionError  # the pauses end by an error
