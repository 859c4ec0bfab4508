"""Shows the guest's console to the client, as the output of the program that is debugged."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from vmdebug.channel.log import kept, messages
from vmdebug.channel.log.inotify import Inotify
from vmdebug.deadline import wait_ready
from vmdebug.faces.dap.runs import Emit

_READ_BYTES = 1 << 16


class ConsoleOutput:
    """Follows the log of a console, from its present end or its start, until `close`.

    Args:
        log: The log.
        emit: Sends an event.
        whole: Whether to begin at its start.
    """

    def __init__(self, log: Path, emit: Emit, *, whole: bool) -> None:
        self._log = log
        self._emit = emit
        self._whole = whole
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._follow, name="guest's console", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show what is left, and end."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _follow(self) -> None:
        with contextlib.suppress(OSError), Inotify(self._log) as grown, self._log.open("rb") as stream:
            if self._whole:
                stream.seek(kept.start(stream.fileno()))
            else:
                stream.seek(0, os.SEEK_END)
            rest = b""
            while True:
                grown.discard()
                while data := stream.read(_READ_BYTES):
                    lines, newline, rest = (rest + data).rpartition(b"\n")
                    self._show(lines + newline)
                if self._wake in wait_ready(grown.fileno(), self._wake, seconds=None):
                    break
            self._show(rest)

    def _show(self, data: bytes) -> None:
        if data:
            text = messages.readable(data).decode(errors="replace").replace("\r", "")
            self._emit("output", {"category": "stdout", "output": text})
