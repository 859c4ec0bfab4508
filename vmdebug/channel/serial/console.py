"""The guest's serial line: one client at a time, pexpect on what QEMU's socket says.

QEMU writes what the guest says to a log whether or not somebody is connected,
and to the socket while somebody is: what was said before is only in the log.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

import pexpect
from pexpect.spawnbase import SpawnBase

from vmdebug import locks, process
from vmdebug.channel.log import death, messages
from vmdebug.channel.serial.drain import CHUNK, Drain
from vmdebug.channel.serial.shell import EXEC, IDLE, LineShell
from vmdebug.channel.watch import Debugger
from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, VmError

LOG_LOOK = 1.0
"""Seconds of quiet after which the log is looked at: what the guest says between our
connect(2) and QEMU's accept(2) is only there."""

TRACE_SECONDS = 0.5
"""How long a dying guest may take to finish its last words, for the error."""

TAIL_LINES = 40
"""Lines of the log that an error shows: a panic's trace and what led to it."""

PATIENCE = 5.0
"""Seconds that QEMU may take to answer a connection, and the guest to take input."""


class Console:
    """The serial line of one VM, as a context manager.

    Args:
        socket: QEMU's socket of it.
        lock: File that its one client holds locked; it starts with that client's pid.
        log: What QEMU writes of it.
    """

    def __init__(self, socket: Path, lock: Path, log: Path) -> None:
        self.path = socket
        self.lock = lock
        self.log = log
        self.shell = LineShell(self)
        """The shell that reads it."""
        self.debugger: Debugger | None = None
        """What may stop the guest while somebody waits here."""
        self._held = contextlib.ExitStack()
        self._open: _Open | None = None
        self._wanted = ""
        self._death = ""

    def __enter__(self) -> Self:
        """Take the console.

        Raises:
            StateError: another client has it; the message has its pid.
            GuestDiedError: QEMU has ended.
        """
        with contextlib.ExitStack() as held:
            lock = held.enter_context(self._locked())
            connection = held.enter_context(self._connected())
            # Held open: the run directory may go before we do.
            log = held.enter_context(self.log.open("rb", buffering=0))
            drain = Drain(connection)
            held.callback(drain.close)
            self._open = _Open(lock, connection, drain, log, _Line(self._read_text))
            self._held = held.pop_all()
        self.note(IDLE)
        self._look_at_log()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is None:
            return  # a session's restart has closed it
        self.note(EXEC if self.shell.unfinished else "")
        self.shell.forget()
        self._open = None
        self._held.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when the guest has said something, or is at its end.

        Raises:
            StateError: the console is not open.
        """
        return self._opened.drain.fileno()

    def send(self, text: str) -> None:
        """Type something.

        Raises:
            VmError: the guest takes no more input.
            GuestDiedError: QEMU has ended.
        """
        data = text.encode("utf-8", "surrogateescape")
        deadline = Deadline.after(PATIENCE)
        while data:
            writable = self._opened.connection.fileno()
            if deadline.passed or not _polled(writable, select.POLLOUT, deadline.left("its input")):
                raise VmError(
                    f"the guest has taken no input from its console for {PATIENCE:g} s",
                    hint="is it stopped by a debugger? set it running first",
                )
            try:
                data = data[self._opened.connection.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._died() from error

    def sendline(self, text: str = "") -> None:
        """Type a line; see `send`."""
        # LF and not CR: it ends a line also where the terminal does not turn one into the other.
        self.send(f"{text}\n")

    def expect(self, pattern: str | re.Pattern[str], *, timeout: float) -> re.Match[str]:
        """Wait until the guest writes text that matches a pattern.

        Args:
            pattern: Regular expression as pexpect takes it: a dot matches newlines too, and a
                terminal's lines end in CR LF. The text is UTF-8 with surrogate escapes.
            timeout: Seconds.

        Returns:
            The match; the guest's output up to its end is consumed.

        Raises:
            GuestDiedError: the guest died, now or before; the detail has its last output.
            DeadlineError: nothing matched in time.
        """
        self._expect(pattern, Deadline.after(timeout))
        return cast("re.Match[str]", self._opened.line.match)

    def read_until(self, pattern: str | re.Pattern[str], *, timeout: float) -> str:
        """Return what the guest wrote up to the end of a match; see `expect`."""
        self._expect(pattern, Deadline.after(timeout))
        return cast("str", self._opened.line.before + self._opened.line.after)

    def _expect(self, pattern: str | re.Pattern[str], deadline: Deadline) -> None:
        shown = pattern if isinstance(pattern, str) else pattern.pattern
        self._wanted = f"{shown!r} on the guest's console"
        try:
            self._opened.line.expect(pattern, timeout=deadline.left(self._wanted))
        except pexpect.TIMEOUT:
            raise self.late(deadline, self._wanted) from None

    def wait_ready(self, *, timeout: float) -> None:
        """Wait until a shell reads the console; return at once if one has answered already.

        Args:
            timeout: Seconds.

        Raises:
            VmError: somebody else reads it, who wants a password or a decision.
            GuestDiedError: the guest died.
            DeadlineError: no shell answered.
        """
        self.shell.wait_ready(Deadline.after(timeout))

    def restored(self) -> None:
        """Take note that the guest is an earlier one: what it has said, died of or run since has not been."""
        opened = self._opened
        opened.line.take()
        self.raw()
        self._death = ""
        self.shell.forget()
        opened.watch = death.Watch()
        opened.looked_at = os.fstat(opened.log.fileno()).st_size

    def receive(self, seconds: float, wanted: str) -> bytes:
        """Return what the guest says next, as soon as it says something.

        What `expect` has read and not used comes from `take`, not from here.

        Args:
            seconds: How long to wait.
            wanted: What for, for the error.

        Returns:
            Its bytes; none where it said nothing.

        Raises:
            GuestDiedError: it died; what it said last was returned before.
            StateError: a debugger has stopped it, see `debugger`.
        """
        self._wanted = wanted
        end = time.monotonic() + seconds
        while True:
            if self._death:
                raise self._died()
            left = max(0.0, end - time.monotonic())
            ready = wait_ready(self.fileno(), self._stops(), seconds=min(left, LOG_LOOK))
            if self.fileno() in ready:
                return self._read()
            if ready and self.debugger is not None:
                self.debugger.look()
            self._look_at_log()
            if time.monotonic() >= end:
                return b""

    def _stops(self) -> int:
        return -1 if self.debugger is None else self.debugger.fileno()

    def raw(self) -> bytes:
        """Return what the guest has said, unjudged, once `fileno` is readable; nothing at QEMU's end."""
        return self._opened.drain.read()

    def take(self) -> bytes:
        """Return, and use up, what came and was matched by no `expect`."""
        return self._opened.line.take()

    def put_back(self, text: bytes) -> None:
        """Have `expect` see something again, before what comes next."""
        self._opened.line.put_back(text)

    def logged(self, size: int) -> bytes:
        """Return the last bytes of the log."""
        log = self._opened.log.fileno()
        end = os.fstat(log).st_size
        return os.pread(log, size, max(0, end - size))

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of the log, without the conversations of `exec`."""
        return process.tail(messages.readable(self.logged(4 * CHUNK)).decode(errors="replace"), lines)

    def late(self, deadline: Deadline, wanted: str, *, hint: str = "") -> DeadlineError:
        """Return the error that says what was waited for, with the end of the log."""
        return deadline.error(wanted, hint=hint, detail=self.tail(10))

    def note(self, what: str) -> None:
        """Write into the lock what this client does, beside its pid; "" when it goes.

        A client that is killed leaves it, and the next one knows what it finds.
        """
        os.ftruncate(self._opened.lock, 0)
        os.pwrite(self._opened.lock, f"{os.getpid()} {what}\n".encode() if what else b"", 0)

    @property
    def _opened(self) -> _Open:
        if self._open is None:
            raise StateError("the console is not open", hint="use it inside `with`")
        return self._open

    def _read(self) -> bytes:
        data = self.raw()
        if not data:
            raise self._died()
        # What came is returned in any case: it may hold what was waited for.
        self._death = self._opened.watch.feed(data)
        return data

    def _read_text(self, seconds: float) -> bytes:
        """Read for `expect`, which takes an exception for silence."""
        data = self.receive(seconds, self._wanted)
        if not data:
            raise pexpect.TIMEOUT(self._wanted)
        return data

    def _look_at_log(self) -> None:
        opened = self._opened
        size = os.fstat(opened.log.fileno()).st_size
        if size > opened.looked_at:
            start = max(0, opened.looked_at - death.WINDOW)
            opened.looked_at = size
            self._death = death.cause_in_log(os.pread(opened.log.fileno(), size - start, start))

    def _died(self) -> GuestDiedError:
        """Return the error that says how the guest died, with its last words, once it has said them."""
        end = Deadline.after(TRACE_SECONDS)
        while not end.passed and death.END_OF_PANIC not in self.logged(CHUNK):
            if not _polled(self.fileno(), select.POLLIN, TRACE_SECONDS) or not self.raw():
                break
        self._death = self._death or death.cause_in_log(self.logged(4 * CHUNK)) or "QEMU has ended"
        return GuestDiedError(
            f"the guest died while vmdebug waited for {self._wanted or 'it'}: {self._death}",
            hint=f"`vmdebug log {self.log.parent.name}` shows all that it said",
            detail=self.tail(),
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise self._gone() from error
        try:
            before = os.pread(fd, 64, 0).decode().split()
            if not locks.try_lock(fd):
                holder = before[0] if before else "of an unknown number"
                raise StateError(
                    f"the console of {self.lock.parent.name} is in use by process {holder}",
                    hint="it has one client at a time: leave `vmdebug console` there with Ctrl-], or wait",
                )
            self.shell.interrupted = before[1:] == [EXEC]
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            try:
                connection.connect(str(self.path))
            except TimeoutError:
                raise StateError(
                    f"QEMU does not answer on {self.path}", hint="somebody else may be connected to it"
                ) from None
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise self._gone() from error
            connection.settimeout(None)
            yield connection

    def _gone(self) -> GuestDiedError:
        return GuestDiedError(
            f"no console of {self.lock.parent.name} at {self.path}: QEMU has ended",
            hint="`vmdebug status` lists what runs",
        )


class _Line(SpawnBase):  # type: ignore[misc] # pexpect ships no types
    """pexpect, fed by a function, with room for what is to be read again."""

    def __init__(self, read: Callable[[float], bytes]) -> None:
        super().__init__(maxread=CHUNK, encoding="utf-8", codec_errors="surrogateescape")
        self.delayafterread = None
        self._read = read
        self._pending = b""
        self._text = _new_decoder()

    def read_nonblocking(self, size: int = 1, timeout: float = -1) -> str:  # noqa: ARG002 - see below
        """Return what comes next. SpawnBase calls it; its `size` is no limit, for nothing gets lost."""
        data, self._pending = self._pending or self._read(timeout), b""
        return self._text.decode(data)

    def take(self) -> bytes:
        """Return all that came and was not used up."""
        text = "" if self.expect(["(?s).+", pexpect.TIMEOUT], timeout=0) else self.after
        undecoded, self._text = self._text.getstate()[0], _new_decoder()
        return cast("str", text).encode("utf-8", "surrogateescape") + undecoded

    def put_back(self, data: bytes) -> None:
        """Have it come again, first."""
        self._pending = data + self._pending


def _new_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("surrogateescape")


@dataclass(slots=True)
class _Open:
    """What an open console holds.

    Args:
        lock: Descriptor of the lock file.
        connection: To QEMU, for writing.
        drain: What comes from there.
        log: The log.
        line: pexpect on the connection.
        watch: Sees the guest die.
        looked_at: Up to where the log has been searched for its death.
    """

    lock: int
    connection: socket.socket
    drain: Drain
    log: IO[bytes]
    line: _Line
    watch: death.Watch = field(default_factory=death.Watch)
    looked_at: int = 0


def _polled(fd: int, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(1000 * seconds))
