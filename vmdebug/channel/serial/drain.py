"""A thread that reads a socket continuously, so that QEMU never blocks on it.

QEMU stops the guest at its serial port while the connected client does not read, and Linux's default
socket buffer holds about 280 of QEMU's one-byte writes. A client that waits for something else, such as GDB,
would stop the guest in the middle of a message.
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
"""Seconds between two reads. QEMU writes each byte separately, and waking a reader for each takes longer
than the write itself: without this pause, output takes twice as long. After a much longer pause the socket
buffer would be full."""


class Drain:
    """Reads a connected socket, and keeps the data until `read` returns it.

    Args:
        connection: The socket. Only this thread reads it; the caller may write to it, and closes it after
            `close`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._kept = bytearray()
        self._ended = False
        # Readable while data is kept, and always after the end.
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="vmdebug-console", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `read` has data, or the connection has ended."""
        return self._ready

    def read(self) -> bytes:
        """Return all data that is kept; b"" if there is none, or after the end."""
        with self._lock:
            data = bytes(self._kept)
            self._kept.clear()
            if data and not self._ended:
                os.eventfd_read(self._ready)
        return data

    def close(self) -> None:
        """Shut the connection down, and end the thread."""
        with contextlib.suppress(OSError):  # QEMU has closed it first
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
