"""Commands to one GDB, and what it says, over GDB/MI.

GDB answers commands in the order it got them, each answer under its command's token;
between them it says at any time what happens to the guest.

Who reads the pipe: handing each answer from a reader thread to the caller costs two
thread switches, half as much again as the command itself. So whoever waits reads, for
all that wait; a thread reads only while nobody does, because a GDB whose pipe is full
stops, and the guest with it (each hit of a breakpoint is a record of 400 bytes).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import io
import itertools
import os
import select
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.debugger import mi
from vmdebug.debugger.end import End
from vmdebug.errors import DeadlineError, GdbError

IDLE_SECONDS = 0.05
"""How long nobody reads before the thread does; a full pipe halts GDB no longer than this."""

_READ_BYTES = 1 << 16
_ASIDE_RECORDS = 50


def argv(gdb: str | os.PathLike[str]) -> list[str]:
    """Return the command line of a GDB that speaks MI: no start-up files, no questions, no network."""
    settings = (
        "set debuginfod enabled off",
        "set pagination off",
        "set confirm off",
        "set style enabled off",
        "set index-cache enabled on",
        # A fault of GDB's own would leave 60 MB in the user's working directory.
        "maintenance set internal-error corefile no",
    )
    options = [word for setting in settings for word in ("-iex", setting)]
    return [os.fspath(gdb), "-nx", "-q", "--interpreter=mi4", *options]


class Listener(Protocol):
    """Who is told what happens; called by whichever thread reads, so it must only take note."""

    def notice(self, record: mi.Record) -> None:
        """Take an exec or notify record, or a result of class "running"."""

    def failed(self, words: str) -> None:
        """Take the late failure of a command that had already answered "running"."""

    def ended(self) -> None:
        """GDB has gone."""


EXCHANGES = 40
"""How many of the last commands, answers and events are kept, for whoever reports a failure."""

_EXCHANGE_CHARACTERS = 400
"""How much of each: an answer can be a megabyte."""


class Answer(msgspec.Struct, frozen=True):
    """GDB's answer to one command.

    Args:
        kind: Result class: "done", "running", "connected", "exit".
        payload: What the result carries.
        console: What the command printed.
        log: What GDB said about it besides: warnings, the errors of scripts.
    """

    kind: str
    payload: Mapping[str, Any]
    console: str
    log: str


@dataclass(slots=True)
class _Call:
    """A command on its way; `result` is set once, by whoever reads."""

    result: mi.Record | None = None
    streams: list[mi.Record] = field(default_factory=list)


class _Reader(enum.Enum):
    NOBODY = enum.auto()
    CALLER = enum.auto()
    IDLE = enum.auto()


class Transport:
    """One GDB process; safe to use from several threads.

    Made by `start` or `join`, ended by `close`. A GDB that was started dies with us: at the end
    of its input it exits, also while the guest runs.
    """

    @classmethod
    def start(
        cls,
        command: Sequence[str | os.PathLike[str]],
        listener: Listener,
        *,
        env: Mapping[str, str] | None = None,
    ) -> Transport:
        """Start GDB.

        Args:
            command: See `argv`.
            listener: Who is told what happens.
            env: GDB's whole environment; None hands on ours.

        Raises:
            HostError: it cannot be started.
        """
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - GDB's own while it lives; `close` closes it
        try:
            # A session of its own: no terminal whose Ctrl-C or hangup reaches GDB instead of us.
            child = process.start(
                command, env=env, stdin=process.PIPE, stdout=process.PIPE, stderr=stderr, session=True
            )
        except BaseException:
            stderr.close()
            raise
        assert child.stdin is not None  # noqa: S101 - for the type checker: both are pipes
        assert child.stdout is not None  # noqa: S101
        end = End(child.pid, lambda: process.end_group(child), child.stdin, child.stdout, stderr)
        transport = cls(end, listener)
        transport._idle.start()
        return transport

    @classmethod
    def join(cls, pid: int, terminal: int, listener: Listener) -> Transport:
        """Talk to a GDB that is somebody else's, and goes on after us.

        Args:
            pid: GDB's.
            terminal: Our end of a terminal on which it speaks MI; it is ours to close.
            listener: Who is told what happens.
        """
        stdin, stdout = os.fdopen(os.dup(terminal), "wb"), os.fdopen(terminal, "rb")
        transport = cls(End(pid, None, stdin, stdout, io.BytesIO()), listener)
        transport._idle.start()
        return transport

    def __init__(self, end: End, listener: Listener) -> None:
        self._end = end
        self._stdin = end.stdin.fileno()
        self._stdout = end.stdout.fileno()
        self._listener = listener
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0  # on `_changed`; spares the common case, nobody, its notify_all
        self._reader = _Reader.NOBODY
        self._tokens = itertools.count(1)
        # In the order that GDB gets them; one whose deadline passed stays until it is answered.
        self._calls: dict[int, _Call] = {}
        self._unsent = b""
        self._partial: list[bytes] = []
        self._exchanges: deque[str] = deque(maxlen=EXCHANGES)
        self._aside: deque[mi.Record] = deque(maxlen=_ASIDE_RECORDS)
        self._resumed = 0
        self._ended = False
        self._readable = select.poll()
        self._readable.register(self._stdout, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(self._stdin, select.POLLOUT)
        self._idle = threading.Thread(target=self._read_when_idle, name="vmdebug-gdb", daemon=True)
        self._closing = threading.Event()
        os.set_blocking(self._stdin, False)

    @property
    def pid(self) -> int:
        """GDB's process id."""
        return self._end.pid

    def execute(self, command: str, deadline: Deadline) -> Answer:
        """Have GDB carry out one MI command.

        Args:
            command: The MI command, without token.
            deadline: When to give up; the transport stays usable, the late answer is dropped.

        Raises:
            GdbError: GDB refused it, or has ended.
            DeadlineError: it has not answered.
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
        """Return once `done()` or GDB has ended; until then take in what GDB says.

        Args:
            done: Looks at what the listener or an answer has noted; must be quick.
            deadline: When to give up.
            what: What is waited for, for the error.

        Raises:
            DeadlineError: it hasn't happened.
        """
        if not self._become_reader(done, deadline, what):
            return
        try:
            while not (done() or self._ended):
                self._read(deadline.left(what))
        finally:
            self._stop_reading()

    def exchanges(self) -> tuple[str, ...]:
        """Return the last commands, answers and events, as they went over the line, the oldest first."""
        with self._lock:
            return tuple(self._exchanges)

    def refresh(self) -> None:
        """Take in what GDB has said by now, without waiting."""
        with self._lock:
            if self._ended or self._reader is not _Reader.NOBODY:
                return  # whoever reads is not behind
            self._reader = _Reader.CALLER
        try:
            while not self._ended and self._read(0):
                pass
        finally:
            self._stop_reading()

    def close(self, deadline: Deadline) -> None:
        """End GDB, by force when it has not gone at the deadline; nothing happens the second time.

        One that is somebody else's is only left.
        """
        if self._closing.is_set():
            return
        try:
            if self._end.kill is not None:
                with contextlib.suppress(GdbError, DeadlineError):
                    self._send("-gdb-exit", deadline)
                    self.wait(lambda: False, deadline, "GDB to exit")
        finally:
            self._closing.set()
            with self._lock:
                self._finish()
            self._end.give_way()
            if self._end.kill is not None:
                self._end.kill()
            self._idle.join()
            with self._lock:  # another thread of the user's may still read; the pipe's end lets it go
                self._changed.wait_for(lambda: self._reader is _Reader.NOBODY, process.TERM_SECONDS)
            self._end.close()

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
            # What a deadline leaves unsent goes out before the next command: no command is ever torn.
            self._writable.poll(deadline.left("GDB to read its commands") * 1000)
            with self._lock:
                sent = self._write()
        return call

    def _write(self, more: bytes = b"") -> bool:
        """Write what GDB takes now, the rest of earlier commands first; return whether that was all."""
        unsent = self._unsent + more if self._unsent else more
        try:
            unsent = unsent[os.write(self._stdin, unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # EPIPE; of a terminal, EIO
            unsent = b""  # it has gone; the end of its output says so
        self._unsent = unsent
        return not unsent

    def _become_reader(self, done: Callable[[], bool], deadline: Deadline, what: str) -> bool:
        """Return whether we are to read now; False: it is done, somebody else has read it."""
        with self._lock:
            while not (done() or self._ended):
                if self._reader is _Reader.NOBODY:
                    self._reader = _Reader.CALLER
                    return True
                if self._reader is _Reader.IDLE:
                    self._end.give_way()
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
        """Take in what comes next, within `seconds`; return whether anything came."""
        if not self._readable.poll(seconds * 1000):
            return False
        try:
            data = os.read(self._stdout, _READ_BYTES)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # the end of a terminal
        with self._lock:
            self._take(data)
            if self._waiting:
                self._changed.notify_all()
        return True

    def _read_when_idle(self) -> None:
        """Read while nobody else does, so that no full pipe stops GDB; the thread's whole life."""
        either = select.poll()
        either.register(self._stdout, select.POLLIN)
        either.register(self._end.poke, select.POLLIN)
        while not self._closing.wait(IDLE_SECONDS):
            with self._lock:
                if self._ended:
                    return
                if self._reader is not _Reader.NOBODY:
                    continue
                self._reader = _Reader.IDLE
            try:
                while not self._end.asked_to_give_way() and not self._ended:
                    if any(fd == self._stdout for fd, _ in either.poll()):
                        self._read(0)
            finally:
                self._stop_reading()

    def _take(self, data: bytes) -> None:
        if not data:
            self._finish()  # a line without its end is dropped: it may be cut anywhere
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
                in_flight.streams.clear()  # the stop announced to a person, not the command's words
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
            # GDB says "running" before it inserts breakpoints, and takes it back when that fails.
            self._listener.failed(mi.plain(_said(self._aside, mi.LOG)) or record.line)

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._listener.ended()
            self._changed.notify_all()

    def _gone(self, message: str, command: str) -> GdbError:
        said = _said(self._aside, mi.LOG)
        return GdbError(message, command=command, detail=process.tail(f"{said}\n{self._end.stderr_text()}"))


def _said(records: Sequence[mi.Record] | deque[mi.Record], sigil: str) -> str:
    return "".join(record.text() for record in records if record.sigil == sigil)
