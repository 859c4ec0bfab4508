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
        self._counts: list[int] = []

    @property
    def busy(self) -> bool:
        """Whether the guest has not read all of the input."""
        return self.on_its_way or bool(self._typed)

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
        if len(self._typed) >= QUEUED:
            return True
        try:
            data = self.client.recv(READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._typed += data
        return bool(data)

    def pass_on(self) -> bool:
        """Send the client the guest's new output; return whether some has to wait for the client."""
        self.watch.discard()
        while self.client is not None:
            self._unsent = self._unsent or os.read(self._output, READ)
            if not self._unsent:
                return False
            try:
                self._unsent = self._unsent[self.client.send(self._unsent) :]
            except BlockingIOError:
                return True
            except OSError:
                return False
        return False

    def leave(self) -> None:
        """Close the client's connection. The rest of what it has typed still goes to the guest."""
        if self.client is not None:
            self.client.close()
            self.client = None

    def type(self) -> None:
        """Give QEMU the next piece."""
        if self._typed and not self.on_its_way:
            sent = os.write(self._input, self._typed[:PIECE])
            del self._typed[:sent]
            self.on_its_way, self._counts = True, []

    def look(self, monitor: Monitor) -> None:
        """Find out whether the guest has read the piece."""
        if self._in_fifo():
            return
        asked = f"i /b {self.status:#x}"
        count, status = monitor.execute_all(
            [("query-replay", {}), ("human-monitor-command", {"command-line": asked})]
        )
        if count is not None and count["icount"] not in self._counts:
            self._counts.append(count["icount"])
        # It prints "portb[0x03fd] = 0x60".
        ready = int(str(status).partition("= ")[2] or "0", 16) & _DATA_READY
        self.on_its_way = len(self._counts) <= TURNS or bool(ready)

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
        self._full: set[Line] = set()

    def run(self) -> None:
        """Serve the lines until QEMU ends.

        Raises:
            EndedError: QEMU has ended.
        """
        self._selector.register(self._monitor, selectors.EVENT_READ, None)
        for line in self._lines:
            self._selector.register(line.listener, selectors.EVENT_READ, line)
            self._selector.register(line.watch, selectors.EVENT_READ, line)
        while True:
            waits = PAUSE if any(line.busy for line in self._lines) else None
            for key, _ in self._selector.select(waits):
                if key.data is None:
                    self._monitor.wait_event()
                else:
                    self._serve(key.data, key.fileobj)
            for line in self._lines:
                if line.on_its_way:
                    line.look(self._monitor)
                line.type()

    def _serve(self, line: Line, ready: object) -> None:
        if ready is line.listener:
            line.accept()
            if line.client is not None:
                self._selector.unregister(line.listener)
                self._selector.register(line.client, selectors.EVENT_READ, line)
        elif ready is line.client and not line.read():
            self._leave(line)
        self._wait_for_client(line, full=line.pass_on())

    def _wait_for_client(self, line: Line, *, full: bool) -> None:
        if line.client is not None and full is not (line in self._full):
            (self._full.add if full else self._full.discard)(line)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if full else 0)
            self._selector.modify(line.client, events, line)

    def _leave(self, line: Line) -> None:
        self._selector.unregister(line.client or line.listener)
        self._full.discard(line)
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
