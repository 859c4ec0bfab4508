"""Reading a socket as fast as its writer writes, whoever wants the data and when.

QEMU holds the guest at its serial port while a connected client does not read,
and Linux' default buffers fill with some 280 of QEMU's one-byte writes. A client
that looks at something else for a while, at GDB say, would stop the guest in the
middle of a message. So a thread reads all the time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

CHUNK = 1 << 16
"""Bytes read at once."""

GATHER = 0.0003
"""Seconds in which bytes gather before they are read. QEMU writes each by itself, and waking
a reader for each takes it longer than the writing: read at once, output takes twice as long.
Not much later its socket is full of them."""


class Drain:
    """What a connected socket says, kept until it is asked for.

    Args:
        connection: Read by nobody else. It is the caller's to write to, and to close after `close`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._kept = bytearray()
        self._ended = False
        # Readable while something is kept, and for good after the end.
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="vmdebug-console", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `read` has something to tell."""
        return self._ready

    def read(self) -> bytes:
        """Return all that is kept; nothing where nothing came, and after the end."""
        with self._lock:
            data = bytes(self._kept)
            self._kept.clear()
            if data and not self._ended:
                os.eventfd_read(self._ready)
        return data

    def close(self) -> None:
        """Stop reading; the connection is at its end."""
        with contextlib.suppress(OSError):  # QEMU was quicker
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        os.close(self._ready)

    def _run(self) -> None:
        while True:
            try:
                data = self._connection.recv(CHUNK)
            except OSError:
                data = b""
            with self._lock:
                if not self._kept and not self._ended:
                    os.eventfd_write(self._ready, 1)
                self._kept += data
                self._ended = not data
            if not data:
                return
            time.sleep(GATHER)
