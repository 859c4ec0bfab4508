"""The client of a guest's serial line: pexpect on QEMU's socket, for one client at a time.

QEMU always writes the guest's output to a log, and also to the socket while a client is connected.
Output from before the connection is only in the log.
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

from vmdebug import locks
from vmdebug.channel.log import death, messages
from vmdebug.channel.serial.drain import CHUNK, Drain
from vmdebug.channel.serial.shell import EXEC, IDLE, LineShell
from vmdebug.channel.watch import PANIC_OUTPUT_SECONDS, QEMU_ENDED, TAIL_LINES, Debugger, Silence
from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import DeadlineError, GuestDiedError, StateError

LOG_LOOK = 1.0
"""Seconds of silence after which the log is read: output between our connect(2) and QEMU's accept(2) is
only there."""

CONNECT_SECONDS = 5.0
"""How long QEMU may take to accept a connection."""

SEND_SECONDS = 5.0
"""How long a guest may accept no input."""


class SerialLine:
    """The connection to the serial line of one VM; a context manager.

    Args:
        socket: QEMU's socket.
        lock: File that the client keeps locked; it starts with the client's pid.
        log: QEMU's log of the guest's output.
        cause: Asks QEMU how the guest died, after some silence; returns "" while it lives.
    """

    def __init__(self, socket: Path, lock: Path, log: Path, *, cause: Callable[[], str] = lambda: "") -> None:
        self.path = socket
        self.lock = lock
        self.log = log
        self.shell = LineShell(self)
        """The shell on the serial line."""
        self.debugger: Debugger | None = None
        """The debugger that may stop the guest during a wait."""
        self._held = contextlib.ExitStack()
        self._open: _Open | None = None
        self._wanted = ""
        self._death = ""
        self._silence = Silence(cause)

    def __enter__(self) -> Self:
        """Lock the serial line, and connect to it.

        Raises:
            StateError: another client uses it; the message has its pid.
            GuestDiedError: QEMU has ended.
        """
        with contextlib.ExitStack() as held:
            lock = held.enter_context(self._locked())
            connection = held.enter_context(self._connected())
            # Keep it open: the run directory may be removed before the console is closed.
            log = held.enter_context(self.log.open("rb", buffering=0))
            drain = Drain(connection)
            held.callback(drain.close)
            self._open = _Open(lock, connection, drain, log, _Reader(self._read_text))
            self._held = held.pop_all()
        self.note(IDLE)
        self._look_at_log()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is None:
            return  # `DebugSession.restart` has closed it
        self.note(EXEC if self.shell.unfinished else "")
        self.shell.forget()
        self._open = None
        self._held.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when the guest has written something, or QEMU has ended.

        Raises:
            StateError: the console is not open.
        """
        return self._opened.drain.fileno()

    def send(self, text: str, *, patience: float = SEND_SECONDS) -> None:
        """Type text.

        Args:
            text: The text; UTF-8 with surrogate escapes.
            patience: Seconds that the guest may accept nothing.

        Raises:
            DeadlineError: the guest accepts no more input.
            GuestDiedError: QEMU has ended.
        """
        data = text.encode("utf-8", "surrogateescape")
        while data:
            if not wait_ready(seconds=patience, events={self._opened.connection.fileno(): select.POLLOUT}):
                raise Deadline.after(patience).error(
                    "the guest to accept input on its console",
                    hint="set it running first if a debugger has stopped it",
                )
            try:
                data = data[self._opened.connection.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._died() from error

    def expect(self, pattern: str | re.Pattern[str], deadline: Deadline) -> re.Match[str]:
        """Wait for a match in the guest's output, and consume the output up to its end.

        Raises:
            GuestDiedError: the guest has died; the detail has its last output.
            DeadlineError: no output matched in time.
        """
        shown = pattern if isinstance(pattern, str) else pattern.pattern
        self._wanted = f"{shown!r} on the guest's console"
        try:
            self._opened.reader.expect(pattern, timeout=deadline.left(self._wanted))
        except pexpect.TIMEOUT:
            raise self.timeout_error(deadline, self._wanted) from None
        return cast("re.Match[str]", self._opened.reader.match)

    @property
    def before(self) -> str:
        """The output that the last `expect` has consumed, up to its match."""
        return cast("str", self._opened.reader.before)

    def restored(self) -> None:
        """Discard output, a death and a running command, after the guest was restored to an earlier state."""
        opened = self._opened
        opened.reader.take()
        self.raw()
        self._death = ""
        self.shell.forget()
        opened.watch = death.Watch()
        opened.looked_at = os.fstat(opened.log.fileno()).st_size

    def receive(self, seconds: float, wanted: str) -> bytes:
        """Wait for output of the guest, and return it.

        Output that `expect` has read but not consumed is returned by `take`, not here.

        Args:
            seconds: How long to wait.
            wanted: What the caller waits for, for the error.

        Returns:
            The new output; b"" if there was none.

        Raises:
            GuestDiedError: the guest has died; its last output was returned before.
            StateError: `debugger` has stopped it.
        """
        self._wanted = wanted
        end = time.monotonic() + seconds
        while True:
            if self._death:
                raise self._died()
            left = max(0.0, end - time.monotonic())
            ready = wait_ready(self.fileno(), self._debugger_fd(), seconds=min(left, LOG_LOOK))
            if self.fileno() in ready:
                self._silence.end()
                return self._read()
            if ready and self.debugger is not None:
                self.debugger.check_stop()
            self._look_at_log()
            self._death = self._death or self._silence.ask()
            if time.monotonic() >= end:
                return b""

    def _debugger_fd(self) -> int:
        return -1 if self.debugger is None else self.debugger.fileno()

    def raw(self) -> bytes:
        """Return new output without looking for a death, once `fileno` is readable; b"" if QEMU has ended."""
        return self._opened.drain.read()

    def take(self) -> bytes:
        """Return and consume the output that no `expect` has matched."""
        return self._opened.reader.take()

    def put_back(self, text: bytes) -> None:
        """Insert text before the output that `expect` reads next."""
        self._opened.reader.put_back(text)

    def logged(self, size: int) -> bytes:
        """Return the last bytes of the log."""
        log = self._opened.log.fileno()
        end = os.fstat(log).st_size
        return os.pread(log, size, max(0, end - size))

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of the log, without the exchanges of `exec`."""
        return messages.tail(self.logged(4 * CHUNK), lines)

    def timeout_error(self, deadline: Deadline, wanted: str, *, hint: str = "") -> DeadlineError:
        """Return the error for a passed deadline, with the end of the log."""
        return deadline.error(wanted, hint=hint, detail=self.tail(10))

    def note(self, what: str) -> None:
        """Write this client's pid and its activity into the lock file; "" when it disconnects.

        After a client was killed, the next one reads from it whether a command may still run.
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
        # Return the data even if the guest has died: it may contain the awaited text.
        self._death = self._opened.watch.feed(data)
        return data

    def _read_text(self, seconds: float) -> bytes:
        """Read for `expect`, which expects an exception if there is no output."""
        data = self.receive(seconds, self._wanted)
        if not data:
            raise pexpect.TIMEOUT(self._wanted)
        return data

    def _look_at_log(self) -> None:
        opened = self._opened
        size = os.fstat(opened.log.fileno()).st_size
        if size > opened.looked_at:
            start = max(0, opened.looked_at - death.WINDOW, size - death.LOOKED_AT)
            opened.looked_at = size
            self._death = death.cause_in_log(os.pread(opened.log.fileno(), size - start, start))

    def _died(self) -> GuestDiedError:
        """Return the error for a guest that has died, with the end of its output."""
        end = Deadline.after(PANIC_OUTPUT_SECONDS)
        while not end.passed and death.END_OF_PANIC not in self.logged(CHUNK):
            if not wait_ready(self.fileno(), seconds=PANIC_OUTPUT_SECONDS) or not self.raw():
                break
        in_log = self._death or death.cause_in_log(self.logged(4 * CHUNK))
        self._death = in_log or self._silence.ask_now() or QEMU_ENDED
        return GuestDiedError(
            f"the guest died while vmdebug waited for {self._wanted or 'it'}: {self._death}",
            hint=f"`vmdebug log {self.log.parent.name}` shows all of its output",
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
                    hint="it serves one client at a time: leave `vmdebug console` there with Ctrl-], or wait",
                )
            self.shell.interrupted = before[1:] == [EXEC]
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CONNECT_SECONDS)
            try:
                connection.connect(str(self.path))
            except TimeoutError:
                raise StateError(
                    f"QEMU does not answer on {self.path}", hint="another program may be connected to it"
                ) from None
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise self._gone() from error
            connection.settimeout(None)
            yield connection

    def _gone(self) -> GuestDiedError:
        return GuestDiedError(
            f"no console of {self.lock.parent.name} at {self.path}: QEMU has ended",
            hint="`vmdebug status` lists the VMs that run",
        )


class _Reader(SpawnBase):  # type: ignore[misc] # pexpect ships no types
    """pexpect on a function that reads, with a buffer for text to be read again."""

    def __init__(self, read: Callable[[float], bytes]) -> None:
        super().__init__(maxread=CHUNK, encoding="utf-8", codec_errors="surrogateescape")
        self.delayafterread = None
        self._read = read
        self._pending = b""
        self._text = _new_decoder()

    def read_nonblocking(self, size: int = 1, timeout: float = -1) -> str:  # noqa: ARG002 - see below
        """Return the next text, for SpawnBase. It may be longer than `size`; pexpect buffers it."""
        data, self._pending = self._pending or self._read(timeout), b""
        return self._text.decode(data)

    def take(self) -> bytes:
        """Return and consume all text that was not matched."""
        text = "" if self.expect(["(?s).+", pexpect.TIMEOUT], timeout=0) else self.after
        undecoded, self._text = self._text.getstate()[0], _new_decoder()
        return cast("str", text).encode("utf-8", "surrogateescape") + undecoded

    def put_back(self, data: bytes) -> None:
        """Insert data before the next text."""
        self._pending = data + self._pending


def _new_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("surrogateescape")


@dataclass(slots=True)
class _Open:
    """The state of an open console.

    Args:
        lock: Descriptor of the lock file.
        connection: Connection to QEMU, for writing.
        drain: Reads the connection.
        log: The log.
        reader: pexpect on the connection.
        watch: Detects the guest's death in its output.
        looked_at: Size of the log that has been searched for a death.
    """

    lock: int
    connection: socket.socket
    drain: Drain
    log: IO[bytes]
    reader: _Reader
    watch: death.Watch = field(default_factory=death.Watch)
    looked_at: int = 0
