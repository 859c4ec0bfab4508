"""Connecting to a QMP socket, and hearing that QEMU is up, without a whole protocol.

qemu.qmp and the asyncio below it take 60 ms to import, three times what QEMU takes to
start. Who only waits for QEMU to be there reads its greeting, one line, and leaves.
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
_BEGINNING = b'{"QMP"'


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


def greeting(path: Path, *, process: ProcessRef, what: str, deadline: Deadline) -> None:
    """Wait until QEMU greets, which it does once it is set up; see "Server Greeting" in qmp-spec.

    Args:
        path: The socket.
        process: QEMU, or the runner that starts it.
        what: What is waited for, for the error.
        deadline: Until when.

    Raises:
        NoListenerError: nobody listens there.
        GuestDiedError: QEMU ended instead.
        DeadlineError: no greeting came.
    """
    said = b""
    with dial(path, what=what, deadline=deadline) as dialled:
        while not said.endswith(b"\n"):
            readable, _, _ = select.select([dialled], [], [], deadline.left(what))
            if readable:
                try:
                    data = dialled.recv(65536)
                except ConnectionResetError:
                    data = b""
                if not data:
                    raise lost(path, process, "before it greeted")
                said += data
    if not said.startswith(_BEGINNING):
        raise QmpError(f"{path} does not speak QMP: it says {said[:60]!r}")


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
