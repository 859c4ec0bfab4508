"""Commands to one GDB and its answers, over GDB/MI.

GDB answers commands in order, and each answer has the token of its command. Between answers, GDB reports
events of the guest at any time.

A reader thread would need two thread switches for each answer, which take half as long as the command itself.
So a waiting caller reads the pipe, on behalf of all callers. A thread reads only while no caller does,
because GDB and the guest block when the pipe is full (each breakpoint hit is a record of 400 bytes).
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.debugger import mi
from vmdebug.debugger.gdb_process import GdbProcess
from vmdebug.errors import DeadlineError, GdbError

IDLE_SECONDS = 0.05
"""Seconds without a reader after which the thread reads: the longest time that a full pipe can block GDB."""

_ASIDE_RECORDS = 50


class Listener(Protocol):
    """Receives GDB's reports. Any reading thread calls it, so it must only store them."""

    def notice(self, record: mi.Record) -> None:
        """Receive an exec or notify record, or a result of class "running"."""

    def failed(self, words: str) -> None:
        """Receive the failure of a command that GDB had already answered with "running"."""

    def ended(self) -> None:
        """Receive the end of GDB."""


EXCHANGES = 40
"""Number of the last commands, answers and events to keep for the report of a failure."""

_EXCHANGE_CHARACTERS = 400
"""Number of characters to keep of each; an answer may have a megabyte."""


class Answer(msgspec.Struct, frozen=True):
    """GDB's answer to one command.

    Args:
        kind: Result class: "done", "running", "connected", "exit".
        payload: The values in the result.
        console: The output of the command.
        log: GDB's warnings, and the errors of scripts.
    """

    kind: str
    payload: Mapping[str, Any]
    console: str
    log: str


@dataclass(slots=True)
class _Call:
    """A command in flight. The reader sets `result` once."""

    result: mi.Record | None = None
    streams: list[mi.Record] = field(default_factory=list)


class _Reader(enum.Enum):
    NOBODY = enum.auto()
    CALLER = enum.auto()
    IDLE = enum.auto()


class Transport:
    """Commands to one GDB and its answers; safe to use from several threads.

    Made by `start`, ended by `close`.
    """

    @classmethod
    def start(cls, gdb: GdbProcess, listener: Listener) -> Self:
        """Start to read GDB's output.

        Args:
            gdb: The process. `close` ends it, or disconnects from a GDB of another process.
            listener: Receives GDB's reports.
        """
        transport = cls(gdb, listener)
        transport._idle.start()
        return transport

    def __init__(self, gdb: GdbProcess, listener: Listener) -> None:
        self._gdb = gdb
        self._listener = listener
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0  # callers on `_changed`: usually none, and notify_all costs time
        self._reader = _Reader.NOBODY
        self._tokens = itertools.count(1)
        # In order. A call whose deadline has passed stays here until GDB answers it.
        self._calls: dict[int, _Call] = {}
        self._unsent = b""
        self._partial: list[bytes] = []
        self._exchanges: deque[str] = deque(maxlen=EXCHANGES)
        self._aside: deque[mi.Record] = deque(maxlen=_ASIDE_RECORDS)
        self._resumed = 0
        self._ended = False
        self._idle = threading.Thread(target=self._read_when_idle, name="vmdebug-gdb", daemon=True)
        self._closing = threading.Event()

    @property
    def pid(self) -> int:
        """GDB's process id."""
        return self._gdb.pid

    def execute(self, command: str, deadline: Deadline) -> Answer:
        """Execute one MI command.

        Args:
            command: The MI command, without token.
            deadline: When to give up. The transport stays usable, and drops a late answer.

        Raises:
            GdbError: GDB refused the command, or has ended.
            DeadlineError: GDB has not answered.
        """
        call = self._send(command, deadline)
        self.wait(lambda: call.result is not None, deadline, f"GDB to answer `{command}`")
        result = call.result
        if result is None:
            raise self._gone(f"GDB ended before it answered `{command}`", command)
        payload = result.payload()
        if result.name == "error":
            words = mi.plain(str(payload.get("msg", ""))).strip()
            raise GdbError(f"GDB refused `{command}`: {words}", command=command, words=words)
        said = call.streams
        if not said:
            return Answer(result.name, payload, "", "")
        return Answer(result.name, payload, _said(said, mi.CONSOLE), _said(said, mi.LOG))

    def wait(self, done: Callable[[], bool], deadline: Deadline, what: str) -> None:
        """Read GDB's output until `done()` returns true or GDB has ended.

        Args:
            done: Checks the state of the listener or of an answer; must be quick.
            deadline: When to give up.
            what: What the caller waits for, for the error.

        Raises:
            DeadlineError: the deadline passed first.
        """
        if not self._become_reader(done, deadline, what):
            return
        try:
            while not (done() or self._ended):
                self._read(deadline.left(what))
        finally:
            self._stop_reading()

    def exchanges(self) -> tuple[str, ...]:
        """Return the last commands, answers and events, the oldest first."""
        with self._lock:
            return tuple(self._exchanges)

    def refresh(self) -> None:
        """Read what GDB has already written, without waiting."""
        with self._lock:
            if self._ended or self._reader is not _Reader.NOBODY:
                return  # another thread reads, so the state is up to date
            self._reader = _Reader.CALLER
        try:
            while not self._ended and self._read(0):
                pass
        finally:
            self._stop_reading()

    def close(self, deadline: Deadline) -> None:
        """End GDB, by force if it has not exited at the deadline; a second call does nothing.

        A GDB of another process continues.
        """
        if self._closing.is_set():
            return
        try:
            if self._gdb.ours:
                with contextlib.suppress(GdbError, DeadlineError):
                    self._send("-gdb-exit", deadline)
                    self.wait(lambda: False, deadline, "GDB to exit")
        finally:
            self._closing.set()
            with self._lock:
                self._finish()
            self._gdb.wake()
            self._gdb.kill()
            self._idle.join()
            with self._lock:  # another thread may still read, until the end of the pipe
                self._changed.wait_for(lambda: self._reader is _Reader.NOBODY, process.TERM_SECONDS)
            self._gdb.close()

    def _send(self, command: str, deadline: Deadline) -> _Call:
        call = _Call()
        with self._lock:
            if self._ended:
                raise self._gone(f"GDB has ended; it cannot do `{command}`", command)
            token = next(self._tokens)
            self._calls[token] = call
            self._exchanges.append(f"{token}{command[:_EXCHANGE_CHARACTERS]}")
            sent = self._write(f"{token}{command}\n".encode(errors="surrogateescape"))
        while not sent:
            # If the deadline passes, the rest of the command is sent before the next one, so none is ever
            # cut.
            self._gdb.wait_writable(deadline.left("GDB to read its commands"))
            with self._lock:
                sent = self._write()
        return call

    def _write(self, more: bytes = b"") -> bool:
        """Write as much as the pipe accepts, earlier commands first; return whether everything is written."""
        self._unsent = self._gdb.write(self._unsent + more if self._unsent else more)
        return not self._unsent

    def _become_reader(self, done: Callable[[], bool], deadline: Deadline, what: str) -> bool:
        """Become the reader and return True; return False if another caller has read the awaited answer."""
        with self._lock:
            while not (done() or self._ended):
                if self._reader is _Reader.NOBODY:
                    self._reader = _Reader.CALLER
                    return True
                if self._reader is _Reader.IDLE:
                    self._gdb.wake()
                self._waiting += 1
                try:
                    self._changed.wait(deadline.left(what))
                finally:
                    self._waiting -= 1
        return False

    def _stop_reading(self) -> None:
        with self._lock:
            self._reader = _Reader.NOBODY
            if self._waiting:
                self._changed.notify_all()

    def _read(self, seconds: float) -> bool:
        """Wait at most `seconds` for output of GDB, and read it; return whether there was any."""
        data = self._gdb.read(seconds)
        if data is None:
            return False
        with self._lock:
            self._take(data)
            if self._waiting:
                self._changed.notify_all()
        return True

    def _read_when_idle(self) -> None:
        """Read while no caller does, so that a full pipe cannot block GDB; the thread's main function."""
        while not self._closing.wait(IDLE_SECONDS):
            with self._lock:
                if self._ended:
                    return
                if self._reader is not _Reader.NOBODY:
                    continue
                self._reader = _Reader.IDLE
            try:
                while not self._ended and not self._gdb.wait_until_woken():
                    self._read(0)
            finally:
                self._stop_reading()

    def _take(self, data: bytes) -> None:
        if not data:
            self._finish()  # drop a last line without newline, which may be cut anywhere
        elif b"\n" not in data:
            self._partial.append(data)
        else:
            *lines, rest = b"".join([*self._partial, data]).split(b"\n")
            self._partial = [rest]
            for line in lines:
                if line != mi.PROMPT:
                    self._dispatch(line)

    def _dispatch(self, line: bytes) -> None:
        record = mi.read(line)
        if record is None:
            return
        if record.sigil in (mi.RESULT, mi.EXEC):
            self._exchanges.append(record.line[:_EXCHANGE_CHARACTERS])
        if record.sigil == mi.RESULT:
            self._answer(record)
            return
        in_flight = next(iter(self._calls.values()), None)
        if record.sigil in (mi.EXEC, mi.NOTIFY):
            if record.name == "stopped" and in_flight is not None:
                in_flight.streams.clear()  # they describe the stop to a person
            self._listener.notice(record)
        elif in_flight is not None:
            in_flight.streams.append(record)
        else:
            self._aside.append(record)

    def _answer(self, record: mi.Record) -> None:
        call = self._calls.pop(record.token, None)
        if call is not None:
            call.result = record
            if record.name == "running":
                self._resumed = record.token
                self._aside.clear()
                self._listener.notice(record)
        elif record.name == "error" and record.token == self._resumed:
            # GDB answers "running" before it inserts breakpoints, and reports an error if that fails.
            self._listener.failed(mi.plain(_said(self._aside, mi.LOG)) or record.line)

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._listener.ended()
            self._changed.notify_all()

    def _gone(self, message: str, command: str) -> GdbError:
        in_flight = (record for call in self._calls.values() for record in call.streams)
        said = _said([*self._aside, *in_flight], mi.LOG)
        return GdbError(message, command=command, detail=process.tail(f"{said}\n{self._gdb.stderr_text()}"))


def _said(records: Sequence[mi.Record] | deque[mi.Record], sigil: str) -> str:
    return "".join(record.text() for record in records if record.sigil == sigil)
