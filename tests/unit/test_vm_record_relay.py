"""The relay of a recorded guest: whole input, all output, and no turn that does nothing."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from vmdebug.vm import record_relay
from vmdebug.vm.record_monitor import Monitor
from vmdebug.vm.record_relay import LONGEST, PATIENCE, PIECE, QUEUED, Line, Relay, Wired

FEW = 40
"""Turns in a second that are few; a relay that spins makes thousands."""


class Qemu:
    """QEMU's ends of a line: a guest that reads its input only when it is told to."""

    def __init__(self, directory: Path) -> None:
        self.asked = 0
        self.received = b""
        self._icount = 0
        self._mine, self._theirs = socket.socketpair()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "sock"))
        listener.listen()
        os.mkfifo(directory / "in")
        self._input = os.open(directory / "in", os.O_RDWR | os.O_NONBLOCK)
        self._output = (directory / "out").open("wb", buffering=0)
        wired = Wired(
            listener=listener.detach(), input=str(directory / "in"), output=str(directory / "out"), status=5
        )
        self.line = Line(wired)
        self.relay = Relay([self.line], cast("Monitor", self))
        self.relay.begin()
        self.client = socket.socket(socket.AF_UNIX)
        self.client.connect(str(directory / "sock"))
        self.relay.turn(5)

    def fileno(self) -> int:
        return self._theirs.fileno()

    def execute_all(self, commands: Sequence[tuple[str, Mapping[str, object]]]) -> list[Any]:
        self.asked += 1
        assert len(commands) == 2
        return [{"icount": self._icount}, "portb[0x0005] = 0x60"]

    def wait_event(self, name: str = "") -> None:
        self._theirs.recv(1)

    def event(self) -> None:
        self._mine.send(b"!")

    def read(self) -> None:
        """Let the guest run and read what is in the FIFO."""
        self._icount += 1
        try:
            self.received += os.read(self._input, 4096)
        except BlockingIOError:
            return

    def print(self, data: bytes) -> None:
        self._output.write(data)

    def fill(self) -> None:
        """Type until the relay takes no more."""
        self.client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.client.send(bytes(QUEUED))
                self.turns(0.001)

    def turns(self, seconds: float) -> int:
        """Serve for so long as `run` does, and return how many turns that took."""
        end, count = time.monotonic() + seconds, 0
        while (left := end - time.monotonic()) > 0:
            pause = self.relay.pause
            self.relay.turn(left if pause is None else min(pause, left))
            count += 1
        return count

    def close(self) -> None:
        self.line.leave()
        self.line.close()
        self.client.close()
        self._mine.close()
        self._theirs.close()
        self._output.close()
        os.close(self._input)


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    made = Qemu(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_input_arrives_whole_and_in_pieces_that_a_uart_holds(qemu: Qemu) -> None:
    typed = bytes(range(256)) * 2
    qemu.client.sendall(typed)
    for _ in range(2000):
        qemu.relay.turn(qemu.relay.pause)
        before = len(qemu.received)
        qemu.read()
        assert len(qemu.received) - before <= PIECE
        if qemu.received == typed:
            break
    assert qemu.received == typed


def test_output_waits_for_a_client_that_does_not_read(qemu: Qemu) -> None:
    text = b"x" * (1 << 20)
    qemu.print(text)
    assert qemu.turns(0.2) <= FEW
    received = b""
    qemu.client.settimeout(5)
    while len(received) < len(text):
        received += qemu.client.recv(1 << 16)
        qemu.turns(0.001)
    assert received == text


def test_an_idle_line_takes_no_turn(qemu: Qemu) -> None:
    assert qemu.turns(0.2) == 1
    qemu.client.close()
    assert qemu.turns(0.2) <= 2
    assert qemu.asked == 0


def test_a_client_that_closes_is_forgotten_and_what_it_has_typed_goes_on(qemu: Qemu) -> None:
    qemu.client.sendall(b"ls\n")
    qemu.client.close()
    qemu.turns(0.1)
    assert qemu.line.client is None
    qemu.read()
    assert qemu.received == b"ls\n"


@pytest.mark.parametrize("closed", [False, True])
def test_a_guest_that_does_not_read_is_looked_at_less_and_less_often(qemu: Qemu, closed: bool) -> None:
    qemu.fill()
    if closed:
        qemu.client.close()
    for _ in range(8 * PATIENCE):
        qemu.line.look(cast("Monitor", qemu))
    assert qemu.relay.pause == LONGEST
    assert qemu.line.waits_for == 0
    asked = qemu.asked
    assert qemu.turns(1) <= FEW
    assert qemu.asked - asked <= FEW
    qemu.event()  # such as RESUME
    qemu.relay.turn(5)
    assert qemu.relay.pause == record_relay.PAUSE


def test_a_client_that_only_stops_reading_is_not_asked_again_and_again(qemu: Qemu) -> None:
    qemu.client.shutdown(socket.SHUT_RD)
    qemu.print(b"hello\n")
    assert qemu.turns(0.2) <= FEW
    qemu.client.sendall(b"x")
    qemu.turns(0.05)
    qemu.read()
    assert qemu.received == b"x"
    assert qemu.line.waits_for == selectors.EVENT_READ
