"""Runs commands with the agent in the guest."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence

from vmdebug.channel import port, shell
from vmdebug.channel.agent.frames import Frame
from vmdebug.channel.agent.session import EndedError, LostError, Session
from vmdebug.channel.port import PortAddress
from vmdebug.channel.shell import Output, Streams
from vmdebug.channel.watch import NO_ANSWER_HINT, Watch
from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, StateError, UsageError, VmdebugError, VmError

WINDOW = 1 << 17
"""Bytes of input to send before the command reads them; the agent keeps them in memory."""

UART_WINDOW = 1 << 14
"""The same on a UART: the kernel drops what a busy agent has not read, beyond 64 KiB (tty_buffer.c)."""

PIECE = 1 << 14
"""Bytes of input in one frame."""

LONGEST_LINE = (4 << 20) - 64
"""Bytes of the longest command; `agent.c` drops frames longer than its FRAME_LIMIT."""

FIRST_ASK = 0.25
LAST_ASK = 2.0
"""Seconds until the request is repeated; the time doubles with each repetition."""

FIRST_CONNECTION = 1.5
"""Seconds without an answer after which vmdebug connects again; the time doubles with each connection."""

PING_SECONDS = 1.0
"""Seconds of silence after which vmdebug asks the agent whether it still knows the session."""

TERM_SECONDS = 0.5
"""How long a command may take to end at SIGTERM, and then at SIGKILL."""

WANTED = "the agent in the guest"


class AgentShell:
    """Runs commands with the agent, each on a port of its own.

    Args:
        addresses: The ports.
        watch: Returns a watch for the guest's death or stop while a command runs.
        silent: Called when the agent does not answer at once; raises if it cannot.
        window: Bytes of input to send before the command reads them.
    """

    largest: int | None = None

    def __init__(
        self,
        addresses: Sequence[PortAddress],
        *,
        watch: Callable[[], Watch],
        silent: Callable[[], None],
        window: int = WINDOW,
    ) -> None:
        self._addresses = addresses
        self._watch = watch
        self._silent = silent
        self._window = window

    def begin(self, line: bytes, streams: Streams, *, deadline: Deadline) -> AgentRunning:
        """Start a command; see `Shell.begin`.

        Raises:
            UsageError: the command is longer than `LONGEST_LINE`.
        """
        if len(line) > LONGEST_LINE:
            raise UsageError(
                f"the command has {len(line)} bytes; the guest's agent accepts {LONGEST_LINE}",
                hint="pass it as the standard input of sh",
            )
        watch = self._watch()
        with contextlib.ExitStack() as protected:
            protected.callback(watch.close)
            session = self._open_session(watch, deadline)
            protected.callback(session.close)
            session.send(b"X", bytes([streams.stdin is not None]) + line)
            protected.pop_all()
        return AgentRunning(session, watch, line, _Input(streams, self._window), streams)

    def greet(self, deadline: Deadline) -> None:
        """Wait until the agent answers.

        Raises:
            VmdebugError: as `Shell.begin` does.
        """
        watch = self._watch()
        try:
            self._open_session(watch, deadline).close()
        finally:
            watch.close()

    def _open_session(self, watch: Watch, deadline: Deadline) -> Session:
        """Begin a session; connect again and again, each time for longer, until the agent answers.

        Rarely (once in hundreds of sessions of a guest that a breakpoint stops often, under TCG), the agent
        sleeps though requests arrive. QEMU reports each new connection to the guest, which wakes the agent.
        """
        seconds = FIRST_CONNECTION
        while True:
            session = self._connect(watch, deadline)
            try:
                if self._greet(session, watch, deadline, Deadline.after(seconds)):
                    return session
            except EndedError as error:
                session.close()
                raise watch.died(WANTED) from error
            except BaseException:
                session.close()
                raise
            session.close()
            seconds *= 2

    def _connect(self, watch: Watch, deadline: Deadline) -> Session:
        busy = f"one of the {len(self._addresses)} ports into the guest: a command runs on each of them"
        try:
            return Session(port.take(self._addresses, what=busy, deadline=deadline))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._silent()
            raise watch.died(WANTED) from error

    def _greet(self, session: Session, watch: Watch, deadline: Deadline, connection: Deadline) -> bool:
        """Request a session until the agent confirms it or `connection` has passed; return whether it has."""
        patience = FIRST_ASK
        while not connection.passed:
            session.ask()
            again = Deadline.after(patience)
            patience = min(2 * patience, LAST_ASK)
            while not again.passed:
                if deadline.passed:
                    raise deadline.error(WANTED, hint=NO_ANSWER_HINT, detail=watch.tail(10))
                seconds = min(again.remaining, deadline.remaining)
                if watch.wait({session.fileno(): session.events}, seconds, WANTED):
                    session.read_frames()
                    session.flush()
                if session.greeted:
                    return True
            self._silent()
        return False


class AgentRunning:
    """A command that the agent runs.

    Args:
        session: The session that runs it.
        watch: Watches for the guest's death or stop.
        line: The command.
        source: Its input.
        streams: Its streams.
    """

    def __init__(self, session: Session, watch: Watch, line: bytes, source: _Input, streams: Streams) -> None:
        self._session = session
        self._watch = watch
        self._shown = shell.shown(line)
        self._wanted = f"{self._shown} to end in the guest"
        self._input = source
        self._stdout, self._stderr = bytearray(), bytearray()
        self._sinks = {
            b"O": streams.stdout or self._stdout.extend,
            b"R": streams.stderr or self._stderr.extend,
        }
        self._status: int | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._last_frame_at = time.monotonic()
        self._pinged = False

    def result(self, deadline: Deadline) -> Output:
        """Wait for the command to end; see `Running.result`."""
        with self._failing():
            while self._status is None:
                if deadline.passed:
                    raise deadline.error(self._wanted, detail=self._watch.tail(10))
                self._transfer(deadline.remaining)
        self._close()
        return Output(bytes(self._stdout), bytes(self._stderr), self._status)

    def wait(self, seconds: float) -> bool:
        """Wait for the command to end, and return whether it has; see `Running.wait`."""
        deadline = Deadline.after(seconds)
        with self._failing():
            while self._status is None and not deadline.passed:
                self._transfer(deadline.remaining)
        return self._status is not None

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """End the command if the block raises, except because a debugger has stopped the guest."""
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except StateError:
            raise  # the command continues with the guest
        except BaseException as error:
            self._failure = self._translate(error)
            self._end(ask=not isinstance(self._failure, (GuestDiedError, VmError)))
            if self._failure is error:
                raise
            raise self._failure from error

    def cancel(self) -> None:
        """End the command; see `Running.cancel`."""
        if self._status is None and self._failure is None:
            self._failure = StateError(f"{self._shown} was cancelled")
            self._end(ask=True)

    def settle(self) -> bool:
        """Handle the frames that have arrived; return whether the command has ended."""
        if self._status is None and self._failure is None:
            try:
                self._transfer(0)
            except StateError:
                return False  # the guest is stopped
            except VmdebugError as error:
                self._failure = self._translate(error)
                self._end(ask=False)
                return True
        if self._status is not None:
            self._close()
        return self._closed

    def _transfer(self, seconds: float) -> None:
        """Wait until data can be sent or received, and do so."""
        session, source = self._session, self._input
        descriptors = {session.fileno(): session.events}
        source.queue(session)
        if source.readable and not session.pending:
            descriptors[source.descriptor] = select.POLLIN
        ready = self._watch.wait(descriptors, min(seconds, PING_SECONDS), self._wanted)
        if source.descriptor in ready:
            source.read(session)
        if session.fileno() in ready:
            session.flush()
            for frame in session.read_frames():
                self._handle(frame)
        elif not self._pinged and time.monotonic() >= self._last_frame_at + PING_SECONDS:
            session.send(b"P")
            self._pinged = True

    def _handle(self, frame: Frame) -> None:
        self._last_frame_at, self._pinged = time.monotonic(), False
        match frame.kind:
            case b"O" | b"R":
                self._sinks[frame.kind](frame.payload)
            case b"A":
                self._input.window += int.from_bytes(frame.payload, "little")
            case b"C":
                self._input.close()
            case b"S":
                self._status = frame.payload[0]
            case b"F":
                why = frame.payload.decode(errors="replace")
                raise VmError(f"{self._shown} cannot be started in the guest: {why}")

    def _translate(self, error: BaseException) -> BaseException:
        """Return the error to raise for an error of the session."""
        if isinstance(error, EndedError):
            return self._watch.died(self._wanted)
        if isinstance(error, LostError):
            return VmError(
                f"the result of {self._shown} is lost: a snapshot was loaded meanwhile, or the guest's agent"
                " was restarted",
                hint="run it again",
            )
        return error

    def _end(self, *, ask: bool) -> None:
        """End the command, first with SIGTERM, and disconnect."""
        self._sinks = dict.fromkeys(self._sinks, _discard)
        self._input.close()
        with contextlib.suppress(VmdebugError):
            for number in (signal.SIGTERM, signal.SIGKILL) if ask else ():
                self._session.send(b"K", bytes([number]))
                end = Deadline.after(TERM_SECONDS)
                while self._status is None and not end.passed:
                    self._transfer(end.remaining)
            self._session.send(b"Q")
        self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._session.close()
            self._watch.close()


class _Input:
    """A command's input, which is sent as the command reads it.

    Args:
        streams: The command's streams.
        window: Bytes to send before the command reads them.
    """

    def __init__(self, streams: Streams, window: int) -> None:
        stdin = streams.stdin
        self.window = window
        self.descriptor = stdin if isinstance(stdin, int) else -1
        self._on_input = streams.on_input
        self._pieces: Iterator[bytes] | None = None
        if stdin is not None and not isinstance(stdin, int):
            self._pieces = iter((stdin,)) if isinstance(stdin, bytes) else stdin
        self._rest = memoryview(b"")

    @property
    def readable(self) -> bool:
        """Whether to read the descriptor now."""
        return self.descriptor >= 0 and self.window > 0

    def close(self) -> None:
        """Stop sending."""
        self.descriptor, self._pieces = -1, None

    def queue(self, session: Session) -> None:
        """Send as many bytes as the command can accept now."""
        while self._pieces is not None and not session.pending:
            while not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    self._end(session)
                    return
                self._rest = memoryview(piece)
            if self.window <= 0:
                return
            size = min(PIECE, self.window)
            piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
            self._send(session, piece)

    def read(self, session: Session) -> None:
        """Read the descriptor, and send the data."""
        data = os.read(self.descriptor, min(PIECE, self.window))
        if data:
            self._send(session, data)
        else:
            self._end(session)

    def _send(self, session: Session, data: bytes) -> None:
        session.send(b"I", data)
        self.window -= len(data)
        if self._on_input is not None:
            self._on_input(len(data))

    def _end(self, session: Session) -> None:
        session.send(b"E")
        self.close()


def _discard(data: bytes) -> None:
    del data
