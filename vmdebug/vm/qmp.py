"""QMP, QEMU's monitor protocol: a synchronous client on qemu.qmp.

qemu.qmp is asynchronous and has no timeouts. Its event loop runs in one thread a connection, and every
call has a deadline. See docs/interop/qmp-spec and qemu-qmp-ref of QEMU.

QEMU serves one client at a time on a socket, and a second one waits until the first has gone:
`vmdebug.vm.rundir` says which socket is for whom.

Import this module where a connection is made: asyncio and qemu.qmp take 60 ms to import. `vmdebug start`
imports it while QEMU starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from vmdebug import errors
from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, QmpError, VmdebugError, VmError
from vmdebug.process import ProcessRef

BUSY = "QMP serves one client at a time on a socket: is another one connected to it?"

_CLOSE_SECONDS = 2.0
_EXIT_SECONDS = 1.0

T = TypeVar("T")


class NoListenerError(QmpError):
    """Nobody listens on the socket: QEMU does not yet, or has ended."""


class Event(msgspec.Struct, frozen=True):
    """An event of QEMU.

    Args:
        name: As in the QMP reference: "GUEST_PANICKED".
        data: Its arguments.
        time: When it happened, in seconds since the epoch.
    """

    name: str
    data: dict[str, Any]
    time: float


def connect(path: Path, *, process: ProcessRef | None = None, deadline: Deadline) -> Qmp:
    """Connect to a QMP socket and wait until QEMU answers.

    The answer proves that QEMU has made its devices. Its greeting does not: that comes from a thread of its
    own. See "Capabilities negotiation" in qmp-spec.

    Args:
        path: The socket.
        process: QEMU, or the runner that starts it: tells a lost connection from a QEMU that has ended.
        deadline: When to give up; also for each command and event that has no deadline of its own.

    Raises:
        NoListenerError: nobody listens there.
        GuestDiedError: QEMU ended before it answered.
        QmpError: the other side does not speak QMP.
        DeadlineError: no answer came: QEMU hangs, or somebody else is connected.
    """
    what = f"QEMU to answer on {path}"
    with contextlib.ExitStack() as protected:
        connected = protected.enter_context(_connected(path, what, deadline))
        qmp = protected.enter_context(Qmp(path, process, deadline))
        qmp.greet(connected, what)
        protected.pop_all()
        return qmp


class Qmp:
    """A connection, as a context manager; made by `connect`.

    Args:
        path: The socket.
        process: QEMU, where it is known.
        deadline: For calls that have none of their own.
    """

    def __init__(self, path: Path, process: ProcessRef | None, deadline: Deadline) -> None:
        self.path = path
        self._process = process
        self._deadline = deadline
        self._client = QMPClient()
        # The library would take an event that comes before the answer for the answer; `execute` does not.
        self._client.negotiate = False
        # The library keeps every event for a listener that nobody reads; ours are made by `listen`.
        self._client.events.event_filter = _hear_nothing
        self._loop = _Loop()
        self._gone: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def greet(self, connected: socket.socket, what: str) -> None:
        """Take over a connected socket and negotiate capabilities; for `connect`."""
        try:
            self._loop.run(lambda: self._greet(connected), what=what, deadline=self._deadline, hint=BUSY)
        except ConnectError as error:
            if isinstance(error.exc, (EOFError, ConnectionError)):
                raise self._lost("before it greeted") from error
            raise QmpError(f"{self.path} does not speak QMP: {error}") from error
        except ExecuteError as error:
            raise QmpError(f"QEMU refused qmp_capabilities: {error}") from error
        # qemu.qmp 0.0.6 asserts that the connection still stands at the end of its `connect`.
        except (AssertionError, ExecInterruptedError, StateError) as error:
            raise self._lost("before it answered") from error

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        fds: Sequence[int] = (),
        deadline: Deadline | None = None,
    ) -> Any:
        """Execute a command and return what it returns.

        Args:
            command: Its name in the QMP reference.
            arguments: Its arguments, of JSON's types.
            fds: File descriptors passed with it, for `getfd` and `add-fd`; they stay open here.
            deadline: When to give up; None: the connection's.

        Raises:
            QmpError: QEMU refused it, or closed the connection.
            StateError: the connection is closed.
            GuestDiedError: QEMU has ended.
            DeadlineError: no answer came.
        """
        try:
            return self._loop.run(
                lambda: self._execute(command, arguments, fds),
                what=f"QEMU to answer {command}",
                deadline=deadline or self._deadline,
            )
        except ExecuteError as error:
            raise QmpError(
                f"QEMU refused {command}: {error}", detail=json.dumps(dict(arguments or {}), default=str)
            ) from error
        except (ExecInterruptedError, StateError) as error:
            raise self._lost(f"during {command}") from error

    def execute_all(
        self, commands: Sequence[tuple[str, Mapping[str, object]]], *, deadline: Deadline | None = None
    ) -> list[Any]:
        """Send several commands at once, and return what each returns, or None where QEMU refused it.

        QEMU executes them in their order. A busy guest delays each answer by milliseconds, which are then
        waited for once.

        Args:
            commands: Names and arguments, as for `execute`.
            deadline: When to give up; None: the connection's.

        Raises:
            QmpError: QEMU closed the connection.
            StateError: the connection is closed.
            GuestDiedError: QEMU has ended.
            DeadlineError: an answer did not come.
        """

        async def gathered() -> list[Any]:
            sent = (self._execute(command, arguments, ()) for command, arguments in commands)
            return await asyncio.gather(*sent, return_exceptions=True)

        names = ", ".join(dict.fromkeys(command for command, _ in commands))
        what = f"QEMU to answer {names}"
        found = self._loop.run(gathered, what=what, deadline=deadline or self._deadline)
        for each in found:
            if isinstance(each, (ExecInterruptedError, StateError)):
                raise self._lost(f"during {names}") from each
            if isinstance(each, BaseException) and not isinstance(each, ExecuteError):
                raise each
        return [None if isinstance(each, ExecuteError) else each for each in found]

    @contextlib.contextmanager
    def listen(self, *names: str) -> Iterator[Listener]:
        """Collect events from here on. Enter it before the command that causes the event.

        Args:
            names: Which ones; none given: all.

        Raises:
            GuestDiedError: QEMU has ended.
        """
        events = EventListener(names)
        self._on_loop(lambda: self._client.register_listener(events))
        try:
            yield Listener(self, events)
        finally:
            self._on_loop(lambda: self._client.remove_listener(events))

    def next_event(self, events: EventListener, what: str, deadline: Deadline | None) -> Event:
        """Wait for a listener's next event; for `Listener`."""
        found = self._loop.run(lambda: self._next(events), what=what, deadline=deadline or self._deadline)
        if found is None:
            raise self._lost(f"before {what}")
        return found

    def close(self) -> None:
        """Disconnect; a second call does nothing."""
        # QEMU may have closed it first, and the library reports that once more here.
        with contextlib.suppress(QMPError, EOFError, OSError, VmdebugError):
            self._loop.run(
                self._client.disconnect, what="QMP to close", deadline=Deadline.after(_CLOSE_SECONDS)
            )
        self._loop.stop()

    def _lost(self, when: str) -> VmError:
        """Return the error for a closed connection: QEMU closes its sockets a moment before it ends."""
        if self._process is None or self._process.wait(_EXIT_SECONDS):
            return GuestDiedError(f"QEMU ended {when}", hint="its last words are in qemu.log and console.log")
        return QmpError(f"QEMU closed {self.path} {when}", hint="it runs on: connect again")

    def _on_loop(self, act: Callable[[], None]) -> None:
        async def acting() -> None:
            act()

        with contextlib.suppress(errors.StateError):  # closed: no event comes any more
            self._loop.run(acting, what="QMP's own thread", deadline=Deadline.after(_CLOSE_SECONDS))

    async def _greet(self, connected: socket.socket) -> None:
        await self._client.connect(connected)
        self._gone = asyncio.create_task(self._until_gone())
        await self._client.execute("qmp_capabilities")

    async def _execute(self, command: str, arguments: Mapping[str, object] | None, fds: Sequence[int]) -> Any:
        for fd in fds:
            self._client.send_fd_scm(fd)
        return await self._client.execute(command, arguments)

    async def _until_gone(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def _next(self, events: EventListener) -> Event | None:
        if not events.empty() or self._gone is None:
            return _event(await events.get())
        getting = asyncio.create_task(events.get())
        try:
            await asyncio.wait({getting, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            return _event(getting.result()) if getting.done() else None
        finally:
            getting.cancel()


class Listener:
    """The events since `Qmp.listen` was entered, in their order."""

    def __init__(self, qmp: Qmp, events: EventListener) -> None:
        self._qmp = qmp
        self._events = events

    def next(
        self, wanted: Callable[[Event], bool] | None = None, *, deadline: Deadline | None = None
    ) -> Event:
        """Return the next event, waiting for it.

        Args:
            wanted: Says whether an event is the one that is waited for; others are dropped. None: each is.
            deadline: When to give up; None: the connection's.

        Raises:
            GuestDiedError: QEMU ended, and all its events have been returned.
            DeadlineError: none came.
        """
        names = " or ".join(sorted(self._events.names)) or "an event"
        while True:
            event = self._qmp.next_event(self._events, names, deadline)
            if wanted is None or wanted(event):
                return event


class _Loop:
    """An event loop in a thread of its own, started by the first `run`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def run(
        self, make: Callable[[], Coroutine[Any, Any, T]], *, what: str, deadline: Deadline, hint: str = ""
    ) -> T:
        """Run a coroutine to its end in the loop, and cancel it at the deadline or at Ctrl-C.

        Raises:
            StateError: it was stopped.
        """
        left = deadline.left(what)
        loop = self._started()
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(make(), left), loop)
        try:
            return future.result()
        except TimeoutError:
            raise deadline.error(what, hint=hint) from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._stopped = True
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop = self._thread = None

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._stopped:
            raise errors.StateError("the QMP connection is closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_serve, args=(self._loop,), name="vmdebug-qmp", daemon=True
            )
            self._thread.start()
        return self._loop


def _connected(path: Path, what: str, deadline: Deadline) -> socket.socket:
    """Return a connected socket; asyncio takes EAGAIN, the full queue of unix(7), for success."""
    with contextlib.ExitStack() as protected:
        connected = protected.enter_context(socket.socket(socket.AF_UNIX))
        connected.setblocking(False)
        retries = deadline.pauses(what)
        # Others are before us in the queue, and no descriptor tells when it moves.
        while not _try(connected, path):
            if deadline.passed:
                raise deadline.error(what, hint=BUSY)
            time.sleep(next(retries))
        protected.pop_all()
    return connected


def _try(connected: socket.socket, path: Path) -> bool:
    """Try to connect; False while the queue is full."""
    try:
        connected.connect(str(path))
    except BlockingIOError:
        return False
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NoListenerError(f"nobody listens on {path}") from error
    except OSError as error:
        raise QmpError(f"cannot connect to {path}: {error.strerror}") from error
    return True


def _hear_nothing(event: Message) -> bool:  # noqa: ARG001 - the library's signature
    return False


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
        loop.close()


def _event(message: Message) -> Event:
    stamp = message.get("timestamp")
    seconds = 0.0
    if isinstance(stamp, dict):
        seconds = float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
    data = message.get("data")
    return Event(str(message["event"]), data if isinstance(data, dict) else {}, seconds)
