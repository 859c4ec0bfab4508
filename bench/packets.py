"""The minimal packet loop over QEMU's gdbstub for a breakpoint after which the guest continues."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

SECONDS = 60.0


class Loop:
    """Counts the hits of one breakpoint, with only `g`, `z0`, `s`, `Z0`, `c` at each.

    Args:
        endpoint: The gdbstub's socket.
        address: The address of the breakpoint.
    """

    def __init__(self, endpoint: str | os.PathLike[str], address: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._endpoint = os.fspath(endpoint)
        self._where = b"0,%x,1" % address
        self._received = b""
        self.times: list[float] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the guest during the block, and count in another thread."""
        with self._socket:
            self._socket.connect(self._endpoint)
            # QEMU sends every client except the first an unsolicited stop reply.
            self._send(b"qC")
            while not self._receive().startswith(b"QC"):
                pass
            self._ask(b"Z" + self._where)
            thread = threading.Thread(target=self._count)
            self._send(b"c")
            thread.start()
            try:
                yield
            finally:
                self._socket.send(b"\x03")
                thread.join()
                self._ask(b"z" + self._where)
                self._ask(b"D")

    def _count(self) -> None:
        while not (stopped := self._receive()).startswith(b"T02"):  # SIGINT: the end of the block
            assert stopped.startswith(b"T05"), stopped
            self.times.append(time.perf_counter())
            self._ask(b"g")
            self._ask(b"z" + self._where)
            self._ask(b"s")
            self._ask(b"Z" + self._where)
            self._send(b"c")

    def _ask(self, packet: bytes) -> bytes:
        self._send(packet)
        return self._receive()

    def _send(self, packet: bytes) -> None:
        self._socket.sendall(b"+$%s#%02x" % (packet, sum(packet) % 256))

    def _receive(self) -> bytes:
        while True:
            begin = self._received.find(b"$")
            end = self._received.find(b"#", begin)
            if begin >= 0 and end >= 0 and len(self._received) >= end + 3:
                packet, self._received = self._received[begin + 1 : end], self._received[end + 3 :]
                return packet
            data = self._socket.recv(1 << 16)
            assert data, "QEMU has closed its gdbstub"
            self._received += data
