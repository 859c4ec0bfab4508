"""The owner of the line to a machine in kgdb."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import struct
from typing import Self

from vmdebug.debugger.kgdb.endpoint import Endpoint
from vmdebug.debugger.ownership import Claim
from vmdebug.errors import StateError


class KgdbOwner(Claim):
    """The owner of the line to a machine in kgdb; a context manager that releases it. Made by `claim`."""

    @classmethod
    def claim(cls, endpoint: Endpoint) -> Self:
        """Claim the line.

        The claim is a socket in the abstract namespace (unix(7)): it leaves no file behind, and a client that
        connects to it gets the pid of the owner.

        Raises:
            StateError: a GDB is already attached; the message has its pid.
        """
        address = endpoint.address if endpoint.kind == "tcp" else os.path.realpath(endpoint.address)
        name = f"\0vmdebug-kgdb-{os.getuid()}-{hashlib.sha256(address.encode()).hexdigest()[:16]}"
        with contextlib.ExitStack() as undo:
            held = undo.enter_context(socket.socket(socket.AF_UNIX))
            try:
                held.bind(name)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                raise _line_taken(endpoint, _listener(name)) from None
            held.listen(1)
            undo.pop_all()
        return cls(held.detach())


def _line_taken(endpoint: Endpoint, pid: int) -> StateError:
    return StateError(
        f"a GDB is already attached at {endpoint.address}: pid {pid or 'unknown'}",
        hint=f"quit it there, or end it with: kill {pid}" if pid else "quit it first",
    )


def _listener(name: str) -> int:
    """Return the pid of the process that listens at an abstract socket, or 0; see SO_PEERCRED in unix(7)."""
    with socket.socket(socket.AF_UNIX) as asking, contextlib.suppress(OSError):
        asking.setblocking(False)
        asking.connect(name)
        pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)
    return 0
