"""QMP, QEMU's monitor protocol: a synchronous client on qemu.qmp.

qemu.qmp is asynchronous and has no timeouts. Each connection runs its event loop in a thread, and every call
has a deadline. See docs/interop/qmp-spec and qemu-qmp-ref of QEMU.

QEMU serves one client at a time on a socket; a second one waits until the first has disconnected. There is
one socket for vmdebug and one for other programs, see `vmdebug.vm.rundir`.

Import this module only to connect: asyncio and qemu.qmp take 60 ms to import. `vmdebug start` imports it
while QEMU starts.
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

BUSY = "a QMP socket serves one client at a time: is another one connected?"

_CLOSE_SECONDS = 2.0
_EXIT_SECONDS = 1.0

T = TypeVar("T")


class NoListenerError(QmpError):
    """No process listens on the socket: QEMU has not opened it yet, or has ended."""


class Event(msgspec.Struct, frozen=True):
    """An event of QEMU.

    Args:
        name: Its name in the QMP reference: "GUEST_PANICKED".
        data: Its arguments.
        time: When it happened, in seconds since the epoch.
    """

    name: str
    data: dict[str, Any]
    time: float


def connect(path: Path, *, process: ProcessRef | None = None, deadline: Deadline) -> Qmp:
    """Connect to a QMP socket and wait until QEMU answers.

    When QEMU answers, it has made its devices. Its greeting proves nothing, because another thread sends it.
    See "Capabilities negotiation" in qmp-spec.

    Args:
        path: The socket.
        process: QEMU, or the runner that starts it; shows whether QEMU has ended when the connection is lost.
        deadline: When to give up, and the default deadline of commands and events.

    Raises:
        NoListenerError: no process listens on the socket.
        GuestDiedError: QEMU ended before it answered.
        QmpError: the other side does not speak QMP.
        DeadlineError: QEMU did not answer: it hangs, or another client is connected.
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
        process: QEMU, or None if unknown.
        deadline: The default deadline of all calls.
    """

    def __init__(self, path: Path, process: ProcessRef | None, deadline: Deadline) -> None:
        self.path = path
        self._process = process
        self._deadline = deadline
        self._client = QMPClient()
        # The library's negotiation takes an event that arrives first for the answer; `execute` does not.
        self._client.negotiate = False
        # The library's default listener would collect all events; `listen` makes its own listeners.
        self._client.events.event_filter = _accept_none
        self._loop = _Loop()
        self._gone: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def greet(self, connected: socket.socket, what: str) -> None:
        """Use a connected socket, and negotiate capabilities; called by `connect`."""
        try:
            self._loop.run(lambda: self._greet(connected), what=what, deadline=self._deadline, hint=BUSY)
        except ConnectError as error:
            if isinstance(error.exc, (EOFError, ConnectionError)):
                raise self._lost("before it greeted") from error
            raise QmpError(f"{self.path} does not speak QMP: {error}") from error
        except ExecuteError as error:
            raise QmpError(f"QEMU refused qmp_capabilities: {error}") from error
        # qemu.qmp 0.0.6 asserts at the end of its `connect` that the connection is still open.
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
        """Execute a command and return its result.

        Args:
            command: Its name in the QMP reference.
            arguments: Its arguments, as JSON values.
            fds: File descriptors to pass, for `getfd` and `add-fd`; they stay open in this process.
            deadline: When to give up; by default the connection's deadline.

        Raises:
            QmpError: QEMU refused it, or closed the connection.
            StateError: the connection is closed.
            GuestDiedError: QEMU has ended.
            DeadlineError: QEMU did not answer.
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
        """Send several commands at once, and return their results; None for a command that QEMU refused.

        QEMU executes them in order. A busy guest delays each answer by milliseconds; this way, vmdebug waits
        for that delay only once.

        Args:
            commands: Names and arguments, as for `execute`.
            deadline: When to give up; by default the connection's deadline.

        Raises:
            QmpError: QEMU closed the connection.
            StateError: the connection is closed.
            GuestDiedError: QEMU has ended.
            DeadlineError: QEMU did not answer.
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
        """Collect events in the block. Enter it before the command that causes the event.

        Args:
            names: The names of the events; by default all.

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
        # If QEMU has closed the connection first, the library reports that again here.
        with contextlib.suppress(QMPError, EOFError, OSError, VmdebugError):
            self._loop.run(
                self._client.disconnect, what="QMP to close", deadline=Deadline.after(_CLOSE_SECONDS)
            )
        self._loop.stop()

    def _lost(self, when: str) -> VmError:
        """Return the error for a closed connection. QEMU closes its sockets shortly before it ends."""
        if self._process is None or self._process.wait(_EXIT_SECONDS):
            return GuestDiedError(f"QEMU ended {when}", hint="see qemu.log and console.log for the reason")
        return QmpError(f"QEMU closed {self.path} {when}", hint="it still runs: connect again")

    def _on_loop(self, act: Callable[[], None]) -> None:
        async def acting() -> None:
            act()

        with contextlib.suppress(errors.StateError):  # closed, so there are no more events
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
    """The events since `Qmp.listen` was entered, in order."""

    def __init__(self, qmp: Qmp, events: EventListener) -> None:
        self._qmp = qmp
        self._events = events

    def next(
        self, wanted: Callable[[Event], bool] | None = None, *, deadline: Deadline | None = None
    ) -> Event:
        """Wait for the next event, and return it.

        Args:
            wanted: Returns whether an event is the wanted one; others are dropped. None: take any event.
            deadline: When to give up; by default the connection's deadline.

        Raises:
            GuestDiedError: QEMU has ended, and all its events have been returned.
            DeadlineError: there was no such event.
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
        """Run a coroutine in the loop; cancel it at the deadline, or at Ctrl-C.

        Raises:
            StateError: the loop was stopped.
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
    """Return a connected socket. asyncio would take EAGAIN, for a full queue, for success; see unix(7)."""
    with contextlib.ExitStack() as protected:
        connected = protected.enter_context(socket.socket(socket.AF_UNIX))
        connected.setblocking(False)
        retries = deadline.pauses(what)
        # The queue is full, and no descriptor shows when there is a free place.
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
        raise NoListenerError(f"no process listens on {path}") from error
    except OSError as error:
        raise QmpError(f"cannot connect to {path}: {error.strerror}") from error
    return True


def _accept_none(event: Message) -> bool:  # noqa: ARG001 - the library's signature
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
