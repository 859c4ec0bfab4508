"""A CPU that QEMU keeps stepping while GDB wants it to run: a stub stops it a byte after a breakpoint."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.gdb.stub import Stub
from vmdebug.debugger.gdb import Gdb


class Stepped(Stub):
    """A guest with two CPUs; at its first stop it has executed one byte of a function with a breakpoint."""

    def __init__(self, listener: socket.socket) -> None:
        self.stops: list[int] = []
        self.written: list[bytes] = []
        self._planted = 0
        super().__init__(listener, {b"qfThreadInfo": b"m01,02", b"Z0": b"OK", b"T": b"OK"})

    def _answer(self, packet: bytes) -> bytes | None:
        if packet.startswith(b"Z0"):
            self._planted = int(packet.split(b",")[1], 16)
        elif packet.startswith((b"P", b"G")):
            self.written.append(packet)
        elif packet.startswith(b"vCont;c"):
            self.stops.append(0 if self.stops else 1)
            self.rip = self._planted + self.stops[-1]
            return b"T05thread:01;"
        return super()._answer(packet)


def test_the_guest_does_not_execute_that_byte_twice(
    unconnected: Gdb, directory: Path, listener: socket.socket
) -> None:
    stub = Stepped(listener)
    try:
        unconnected.connect(directory / "stub")
        with unconnected.breakpoint("main") as planted:
            assert unconnected.cont(timeout=20).breakpoint == planted
        assert stub.stops == [1, 0]
        assert stub.written == []
    finally:
        unconnected.close()
        stub.close()
