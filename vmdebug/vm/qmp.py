"""QMP, QEMU's monitor protocol: a small synchronous front to qemu.qmp.

qemu.qmp is asynchronous and waits for ever; here its loop runs in one thread a
connection, and every call takes a deadline. A socket serves one client at a time,
and a second one hears nothing until the first has gone: see `vmdebug.vm.rundir`
for who uses which. See docs/interop/qmp-spec.txt and qemu-qmp-ref of QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
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
from qemu.qmp.qmp_client import NegotiationError

from vmdebug import errors
from vmdebug.deadline import Deadline
from vmdebug.errors import QmpError, VmdebugError
from vmdebug.process import ProcessRef
from vmdebug.vm import dial

CLOSE_SECONDS = 2.0
"""How long a connection may take to close before it is dropped."""

ATTEMPTS = 10
"""Connections that are tried when QEMU tells an event before it answers the first command, for which the
library then takes that event. A guest under a trace, which stops and goes on all the time, can have it so."""

T = TypeVar("T")


class _OvertakenError(Exception):
    """Something else came in place of the answer to qmp_capabilities."""


class Event(msgspec.Struct, frozen=True):
    """Something that QEMU told unasked.

    Args:
        name: As in the QMP reference: "GUEST_PANICKED".
        data: Its arguments.
        time: When it happened, in seconds since the epoch.
    """

    name: str
    data: dict[str, Any]
    time: float


def connect(path: Path, *, process: ProcessRef | None = None, deadline: Deadline) -> Qmp:
    """Connect to a QMP socket and wait for QEMU's greeting.

    Args:
        path: The socket.
        process: QEMU, where it is known: tells a lost connection from a QEMU that has ended.
        deadline: Until when the greeting has to be there.

    Raises:
        NoListenerError: nobody listens there.
        GuestDiedError: QEMU ended before it greeted.
        DeadlineError: no greeting came: QEMU hangs, or somebody else is connected.
    """
    what = f"QEMU to answer on {path}"
    attempts = ATTEMPTS
    while True:
        attempts -= 1
        with contextlib.ExitStack() as protected:
            dialled = protected.enter_context(dial.dial(path, what=what, deadline=deadline))
            qmp = protected.enter_context(Qmp(path, process))
            try:
                qmp.greet(dialled, what, deadline)
            except _OvertakenError as error:
                if not attempts:
                    raise QmpError(f"{path} does not speak QMP: {error}") from error
                continue
            protected.pop_all()
            return qmp


class Qmp:
    """A connection; `connect` makes one, and it is a context manager.

    Args:
        path: The socket.
        process: QEMU, where it is known.
    """

    def __init__(self, path: Path, process: ProcessRef | None) -> None:
        self.path = path
        self._process = process
        self._client = QMPClient()
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

    def greet(self, dialled: socket.socket, what: str, deadline: Deadline) -> None:
        """Take over a connected socket; for `connect`."""
        try:
            self._loop.run(lambda: self._greet(dialled), what=what, deadline=deadline, hint=dial.BUSY)
        except ConnectError as error:
            if isinstance(error.exc, (EOFError, ConnectionError)):
                raise dial.lost(self.path, self._process, "before it greeted") from error
            if isinstance(error.exc, NegotiationError):
                raise _OvertakenError(error) from error
            raise QmpError(f"{self.path} does not speak QMP: {error}") from error

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, deadline: Deadline
    ) -> Any:
        """Execute a command and return what it returns.

        Args:
            command: Its name in the QMP reference.
            arguments: Its arguments, of JSON's types.
            deadline: Until when the answer has to be there.

        Raises:
            QmpError: QEMU refused it, or closed the connection.
            StateError: the connection is closed.
            GuestDiedError: QEMU has ended.
            DeadlineError: no answer came.
        """
        try:
            return self._loop.run(
                lambda: self._client.execute(command, arguments),
                what=f"QEMU to answer {command}",
                deadline=deadline,
            )
        except ExecuteError as error:
            raise QmpError(
                f"QEMU refused {command}: {error}", detail=json.dumps(dict(arguments or {}), default=str)
            ) from error
        except (ExecInterruptedError, StateError) as error:
            raise dial.lost(self.path, self._process, f"during {command}") from error

    @contextlib.contextmanager
    def listen(self, *names: str) -> Iterator[Listener]:
        """Hear events from here on; entered before the act whose event is waited for.

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

    def next_event(self, events: EventListener, what: str, deadline: Deadline) -> Event:
        """Wait for a listener's next event; for `Listener`."""
        found = self._loop.run(lambda: self._next(events), what=what, deadline=deadline)
        if found is None:
            raise dial.lost(self.path, self._process, f"before {what}")
        return found

    def close(self) -> None:
        """Disconnect; nothing happens when that was done before."""
        # QEMU may have closed it first, and the library reports that once more here.
        with contextlib.suppress(QMPError, EOFError, OSError, VmdebugError):
            self._loop.run(
                self._client.disconnect, what="QMP to close", deadline=Deadline.after(CLOSE_SECONDS)
            )
        self._loop.stop()

    def _on_loop(self, act: Callable[[], None]) -> None:
        async def acting() -> None:
            act()

        with contextlib.suppress(errors.StateError):  # closed: nobody hears anything any more
            self._loop.run(acting, what="QMP's own thread", deadline=Deadline.after(CLOSE_SECONDS))

    async def _greet(self, dialled: socket.socket) -> None:
        await self._client.connect(dialled)
        self._gone = asyncio.create_task(self._until_gone())

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
    """Events heard since `Qmp.listen` was entered, in their order."""

    def __init__(self, qmp: Qmp, events: EventListener) -> None:
        self._qmp = qmp
        self._events = events

    def next(self, *, deadline: Deadline) -> Event:
        """Return the next event, waiting for it.

        Raises:
            GuestDiedError: QEMU ended, and all that it told has been returned.
            DeadlineError: none came.
        """
        names = " or ".join(sorted(self._events.names)) or "an event"
        return self._qmp.next_event(self._events, names, deadline)


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
