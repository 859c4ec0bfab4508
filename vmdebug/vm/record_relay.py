"""Types into a recorded guest, and passes on what it prints: between its sockets and QEMU's files.

A client connects to the same sockets as those of any VM. QEMU reads a serial line's input from a FIFO and
writes its output to a file; see `recorded.lines`.

While QEMU records, it takes input from the FIFO without regard to what the UART still holds, so that all
beyond the UART's 16 bytes would be lost. So a piece is written only after the guest has read the one before:
QEMU has handed it to the UART, which takes one turn of the CPU's thread, and the UART's "data ready" bit is
clear.

It runs as a program of its own, and ends with QEMU: `python -m vmdebug.vm.record_relay FACTS`.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import selectors
import socket
import sys
import termios
from pathlib import Path

import msgspec

from vmdebug.channel.log.inotify import Inotify
from vmdebug.vm.record_monitor import EndedError, Monitor

PIECE = 16
"""Bytes that a 16550A holds; see hw/char/serial.c of QEMU."""

TURNS = 3
"""Changes of the instruction count after which QEMU has handed over its input. The CPU's thread does so
between two stretches of instructions. In the stretch that runs when the input arrives, the count changes at
most once."""

PAUSE = 0.001
"""Seconds between two looks at the guest while a piece is on its way."""

PATIENCE = 16
"""After so many looks the pause doubles: the guest is stopped, or does not read the line."""

LONGEST = 0.1
"""Seconds that a pause has at most."""

QUEUED = 1 << 16
"""Bytes of a client's input that are taken before the guest reads them."""

READ = 1 << 16

_DATA_READY = 1


class Wired(msgspec.Struct, frozen=True, kw_only=True):
    """A serial line.

    Args:
        listener: Descriptor of the socket that clients connect to.
        input: QEMU's FIFO.
        output: QEMU's file.
        status: The I/O port of the UART's line status.
    """

    listener: int
    input: str
    output: str
    status: int


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the program is told, as JSON.

    Args:
        monitor: The QMP socket that is only its own.
        lines: The serial lines.
    """

    monitor: str
    lines: tuple[Wired, ...]


class Line:
    """One serial line, with at most one client at a time."""

    def __init__(self, wired: Wired) -> None:
        self.listener = socket.socket(fileno=wired.listener)
        self.listener.setblocking(False)
        self.client: socket.socket | None = None
        self.watch = Inotify(Path(wired.output)).__enter__()
        self.status = wired.status
        self._input = os.open(wired.input, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._output = os.open(wired.output, os.O_RDONLY | os.O_CLOEXEC)
        self._typed = bytearray()
        self._unsent = b""
        self.on_its_way = False
        self._count: int | None = None
        self._turns = self._looks = 0

    @property
    def pause(self) -> float | None:
        """Seconds until the next look; None if the guest has read all of the input."""
        if not self.on_its_way and not self._typed:
            return None
        return min(PAUSE * (1 << min(self._looks // PATIENCE, 16)), LONGEST)

    @property
    def waits_for(self) -> int:
        """The events of the client to wait for; 0 if none is of use."""
        reading = selectors.EVENT_READ if len(self._typed) < QUEUED else 0
        return reading | (selectors.EVENT_WRITE if self._unsent else 0)

    def accept(self) -> None:
        """Accept a client; output from before is only in the log."""
        with contextlib.suppress(OSError):
            client, _ = self.listener.accept()
            client.setblocking(False)
            self.client = client
            os.lseek(self._output, 0, os.SEEK_END)
            self._typed.clear()
            self._unsent = b""

    def read(self) -> bool:
        """Read the client's input; return False if it has disconnected."""
        assert self.client is not None  # noqa: S101 - the caller has it from here
        try:
            data = self.client.recv(READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._typed += data
        return bool(data)

    def pass_on(self) -> None:
        """Send the client the guest's new output, as far as it takes it."""
        self.watch.discard()
        while self.client is not None:
            self._unsent = self._unsent or os.read(self._output, READ)
            if not self._unsent:
                return
            try:
                self._unsent = self._unsent[self.client.send(self._unsent) :]
            except BlockingIOError:
                return
            except OSError:
                self._unsent = b""  # it does not read any more
                os.lseek(self._output, 0, os.SEEK_END)
                return

    def leave(self) -> None:
        """Close the client's connection. The rest of what it has typed still goes to the guest."""
        if self.client is not None:
            self.client.close()
            self.client = None

    def close(self) -> None:
        """Close the files."""
        self.watch.__exit__(None, None, None)
        self.listener.close()
        os.close(self._input)
        os.close(self._output)

    def type(self) -> None:
        """Give QEMU the next piece."""
        if self._typed and not self.on_its_way:
            sent = os.write(self._input, self._typed[:PIECE])
            del self._typed[:sent]
            self.on_its_way = True
            self._count, self._turns, self._looks = None, 0, 0

    def expect(self) -> None:
        """Look more often again: the guest may run now."""
        self._looks = 0

    def look(self, monitor: Monitor) -> None:
        """Find out whether the guest has read the piece."""
        self._looks += 1
        if self._in_fifo():
            return
        asked = f"i /b {self.status:#x}"
        count, status = monitor.execute_all(
            [("query-replay", {}), ("human-monitor-command", {"command-line": asked})]
        )
        if count is not None and count["icount"] != self._count:
            self._count = count["icount"]
            self._turns += 1
        # It prints "portb[0x03fd] = 0x60".
        ready = int(str(status).partition("= ")[2] or "0", 16) & _DATA_READY
        self.on_its_way = self._turns <= TURNS or bool(ready)

    def _in_fifo(self) -> int:
        size = array.array("i", [0])
        fcntl.ioctl(self._input, termios.FIONREAD, size)
        return size[0]


class Relay:
    """All serial lines of a guest."""

    def __init__(self, lines: list[Line], monitor: Monitor) -> None:
        self._lines = lines
        self._monitor = monitor
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve the lines until QEMU ends.

        Raises:
            EndedError: QEMU has ended.
        """
        self.begin()
        while True:
            self.turn(self.pause)

    def begin(self) -> None:
        """Wait for clients and output from now on."""
        self._selector.register(self._monitor, selectors.EVENT_READ, None)
        for line in self._lines:
            self._selector.register(line.listener, selectors.EVENT_READ, line)
            self._selector.register(line.watch, selectors.EVENT_READ, line)

    @property
    def pause(self) -> float | None:
        """Seconds that a turn waits at most; None: until something is ready."""
        return min((pause for line in self._lines if (pause := line.pause) is not None), default=None)

    def turn(self, seconds: float | None) -> None:
        """Serve what is ready within so many seconds, or whenever it is.

        Raises:
            EndedError: QEMU has ended.
        """
        for key, events in self._selector.select(seconds):
            if key.data is None:
                self._monitor.wait_event()
                for line in self._lines:
                    line.expect()
            else:
                self._serve(key.data, key.fileobj, events)
        for line in self._lines:
            if line.on_its_way:
                line.look(self._monitor)
            line.type()
            self._wait_for_client(line)

    def _serve(self, line: Line, ready: object, events: int) -> None:
        if ready is line.listener:
            line.accept()
            if line.client is not None:
                self._selector.unregister(line.listener)
        elif ready is line.client and events & selectors.EVENT_READ and not line.read():
            self._leave(line)
        line.pass_on()

    def _wait_for_client(self, line: Line) -> None:
        """Wait only for what is of use now: for anything else the client may always be ready."""
        if line.client is None:
            return
        known = self._selector.get_map().get(line.client)
        before = known.events if known is not None else 0
        if before and not line.waits_for:
            self._selector.unregister(line.client)
        elif before and line.waits_for != before:
            self._selector.modify(line.client, line.waits_for, line)
        elif not before and line.waits_for:
            self._selector.register(line.client, line.waits_for, line)

    def _leave(self, line: Line) -> None:
        if line.client is not None and line.client in self._selector.get_map():
            self._selector.unregister(line.client)
        line.leave()
        self._selector.register(line.listener, selectors.EVENT_READ, line)


def main(words: str) -> None:
    """Serve the lines until QEMU ends."""
    facts = msgspec.json.decode(words, type=Facts)
    lines = [Line(each) for each in facts.lines]
    with contextlib.suppress(EndedError):
        Relay(lines, Monitor.connected(Path(facts.monitor))).run()


if __name__ == "__main__":
    main(sys.argv[1])
