"""QEMU's TCG sometimes ends a step before its instruction; a stub does it each time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gdb.stub import Stub
from vmdebug.debugger.gdb import Gdb

CALLS = 3


class Impatient(Stub):
    """A guest that calls one function `CALLS` times, and does not move at the first step of each."""

    def __init__(self, listener: socket.socket) -> None:
        self.gone_on = threading.Event()
        self._planted = 0
        self.calls = 0
        self._steps = 0
        super().__init__(listener, {})

    def _answer(self, packet: bytes) -> bytes | None:
        match packet[:2]:
            case b"Z0":
                self._planted = int(packet.split(b",")[1], 16)
                return b"OK"
            case b"z0":
                there, self._planted = self._planted, 0
                return b"OK" if there else b"E22"
        if packet.startswith(b"vCont;c"):
            return self._called()
        if packet.startswith(b"vCont;s"):
            self._steps += 1
            self.rip += self._steps % 2 == 0
            return b"T05thread:01;"
        return super()._answer(packet)

    def _called(self) -> bytes | None:
        if self.calls == CALLS:
            self.gone_on.set()
            return None  # it runs
        self.calls += 1
        self.rip = self._planted
        return b"T05thread:01;"


@pytest.fixture
def impatient(unconnected: Gdb, directory: Path, listener: socket.socket) -> Iterator[Impatient]:
    """A GDB connected to the stub."""
    stub = Impatient(listener)
    try:
        unconnected.connect(directory / "stub")
        yield stub
    finally:
        unconnected.close()
        stub.close()


def test_a_trace_tells_each_call_once(unconnected: Gdb, impatient: Impatient) -> None:
    with unconnected.trace("main") as hits:
        assert impatient.gone_on.wait(20)
    assert len(hits) == CALLS


def test_so_does_going_on_from_a_breakpoint(unconnected: Gdb, impatient: Impatient) -> None:
    with unconnected.breakpoint("main") as planted:
        for call in range(1, CALLS + 1):
            assert unconnected.cont(timeout=20).breakpoint == planted
            assert impatient.calls == call
