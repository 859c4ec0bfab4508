"""A QMP connection for a process that waits on its descriptor too; for `record_relay`.

`vmdebug.vm.qmp` has the client for everything else. See docs/interop/qmp-spec of QEMU.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from vmdebug.deadline import Deadline

LAUNCH_SECONDS = 120.0
"""How long QEMU may take to listen."""

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
        # Events after the last result: what they tell is newer than the result.
        self._events: list[dict[str, Any]] = []
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise

    @classmethod
    def connected(cls, path: Path) -> Self:
        """Connect to QEMU as soon as it listens.

        Raises:
            EndedError: it has ended, or did not start.
        """
        for pause in Deadline.after(LAUNCH_SECONDS).pauses("QEMU to listen"):
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                monitor = cls(path)
                monitor.greet()
                return monitor
            if not path.parent.is_dir():
                break
            time.sleep(pause)
        raise EndedError

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
                self._events.clear()
            else:
                self._events.append(message)
        return results

    def wait_event(self, name: str = "") -> None:
        """Wait for an event.

        Args:
            name: Its name; "": any.

        Raises:
            EndedError: QEMU has ended.
        """
        while True:
            message = self._events.pop(0) if self._events else self._next()
            if "event" in message and name in ("", message["event"]):
                return

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
