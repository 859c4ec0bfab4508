"""Connecting to a QMP socket, and hearing that QEMU is up, without a whole protocol.

qemu.qmp and the asyncio below it take 60 ms to import, three times what QEMU takes to
start. Who only waits for QEMU to be there shakes hands, a line each way, and leaves.
"""

from __future__ import annotations

import contextlib
import select
import socket
from pathlib import Path

from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, QmpError, VmError
from vmdebug.process import ProcessRef

BUSY = "QMP serves one client at a time on a socket: is another one connected to it?"

_RETRY_SECONDS = 0.01
_EXIT_SECONDS = 1.0


class NoListenerError(QmpError):
    """Nobody listens on the socket: QEMU does not yet, or has gone."""


def dial(path: Path, *, what: str, deadline: Deadline) -> socket.socket:
    """Return a connected socket.

    Args:
        path: Where QEMU listens.
        what: What is waited for, for the error.
        deadline: Until when to wait for a place in the queue of those who want in.

    Raises:
        NoListenerError: nobody listens there.
        DeadlineError: the queue did not move.
        QmpError: there is no such socket for other reasons.
    """
    with contextlib.ExitStack() as protected:
        dialled = protected.enter_context(socket.socket(socket.AF_UNIX))
        dialled.setblocking(False)
        while not _connected(dialled, path):
            # Others stand in the queue before us, and nothing tells when it moves.
            if deadline.passed:
                raise deadline.error(what, hint=BUSY)
            select.select([], [], [], _RETRY_SECONDS)
        protected.pop_all()
    return dialled


def answer(path: Path, *, process: ProcessRef, what: str, deadline: Deadline) -> None:
    """Wait until QEMU is set up: it answers the handshake then; see "Capabilities negotiation" in qmp-spec.

    Its greeting proves less: that comes from a thread of its own while devices are still being made.

    Args:
        path: The socket.
        process: QEMU, or the runner that starts it.
        what: What is waited for, for the error.
        deadline: Until when.

    Raises:
        NoListenerError: nobody listens there.
        GuestDiedError: QEMU ended instead.
        DeadlineError: no answer came.
    """
    with dial(path, what=what, deadline=deadline) as dialled:
        lines = Lines(dialled, path, process, what, deadline)
        greeting = lines.read()
        if not greeting.startswith(b'{"QMP"'):
            raise QmpError(f"{path} does not speak QMP: it says {greeting[:60]!r}")
        try:
            dialled.sendall(b'{"execute": "qmp_capabilities"}\n')
        except ConnectionError as error:
            raise lost(path, process, "before it answered") from error
        while b'"return"' not in lines.read():
            pass  # an event


class Lines:
    """What QEMU says, line by line.

    Args:
        dialled: The connected socket.
        path: Its path, for errors.
        process: QEMU, or the runner that starts it.
        what: What is waited for, for errors.
        deadline: Until when.
    """

    def __init__(
        self, dialled: socket.socket, path: Path, process: ProcessRef, what: str, deadline: Deadline
    ) -> None:
        self._dialled = dialled
        self._path = path
        self._process = process
        self._what = what
        self._deadline = deadline
        self._unread = b""

    def read(self) -> bytes:
        """Return the next line.

        Raises:
            GuestDiedError: QEMU has ended.
            QmpError: it closed the connection.
            DeadlineError: no line came.
        """
        while b"\n" not in self._unread:
            readable, _, _ = select.select([self._dialled], [], [], self._deadline.left(self._what))
            self._unread += self._receive() if readable else b""
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _receive(self) -> bytes:
        with contextlib.suppress(ConnectionResetError):
            data = self._dialled.recv(65536)
            if data:
                return data
        raise lost(self._path, self._process, "before it answered")


def lost(path: Path, process: ProcessRef | None, when: str) -> VmError:
    """Return the error for a closed connection: QEMU closes its sockets a moment before it ends."""
    if process is None or process.wait(_EXIT_SECONDS):
        return GuestDiedError(f"QEMU ended {when}", hint="its last words are in qemu.log and console.log")
    return QmpError(f"QEMU closed {path} {when}", hint="it runs on: connect again")


def _connected(dialled: socket.socket, path: Path) -> bool:
    """Try to connect; False while the queue is full, EAGAIN of unix(7), which asyncio takes for success."""
    try:
        dialled.connect(str(path))
    except BlockingIOError:
        return False
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NoListenerError(f"nobody listens on {path}") from error
    except OSError as error:
        raise QmpError(f"cannot connect to {path}: {error.strerror}") from error
    return True
