"""A QMP connection for a process that waits on its descriptor too; for `record_relay`.

`vmdebug.vm.qmp` has the client for everything else. See docs/interop/qmp-spec of QEMU.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

_READ = 1 << 16


class EndedError(Exception):
    """QEMU has closed the connection."""


class Monitor:
    """A connection. QEMU answers as soon as its main thread is free; there is no deadline.

    Args:
        path: The socket.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._received = b""
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable when an event has arrived, or QEMU has ended."""
        return self._socket.fileno()

    def greet(self) -> None:
        """Read QEMU's greeting, and leave the negotiation."""
        self._next()
        self.execute_all([("qmp_capabilities", {})])

    def execute_all(self, commands: Sequence[tuple[str, Mapping[str, object]]]) -> list[Any]:
        """Execute commands, and return their results; None for one that QEMU refused.

        Raises:
            EndedError: QEMU has ended.
        """
        asked = b"".join(
            msgspec.json.encode({"execute": name, "arguments": arguments}) for name, arguments in commands
        )
        try:
            self._socket.sendall(asked)
        except OSError as error:
            raise EndedError from error
        results: list[Any] = []
        while len(results) < len(commands):
            message = self._next()
            if "return" in message or "error" in message:
                results.append(message.get("return"))
        return results

    def discard_events(self) -> None:
        """Read the events that have arrived.

        Raises:
            EndedError: QEMU has ended.
        """
        self._next()

    def _next(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(_READ)
            except OSError as error:
                raise EndedError from error
            if not data:
                raise EndedError
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        found: dict[str, Any] = msgspec.json.decode(line)
        return found
