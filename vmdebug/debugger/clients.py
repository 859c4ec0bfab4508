"""Finds another program that is connected to a gdbstub.

QEMU serves one client. A second one connects and never gets an answer, and GDB waits for that for a long
time. So vmdebug asks the kernel first who is connected.
"""

from __future__ import annotations

from vmdebug import process, sockets
from vmdebug.errors import StateError
from vmdebug.process import ProcessRef

LEAVING_SECONDS = 0.7
"""How long a process that is ending may stay connected."""


def check_free(endpoint: str, vm: str) -> None:
    """Check that no other program is connected to a gdbstub.

    Args:
        endpoint: The stub: the path of its socket, or 127.0.0.1:PORT.
        vm: The VM's name, for the error.

    Raises:
        StateError: another program is connected; the message has its pid.
    """
    connected = sockets.clients(endpoint)
    if not connected:
        return
    pid = sockets.holder(connected[0])
    ref = ProcessRef.of(pid)
    if (ref is None or ref.wait(LEAVING_SECONDS)) and not sockets.clients(endpoint):
        return
    who, end = "a process of another user", f"find it: ss -xp | grep {endpoint}"
    if pid:
        who, end = process.describe(pid), f"quit it, or end it with: kill {pid}"
    raise StateError(f"another program is connected to the gdbstub of {vm}: {who}", hint=end)
