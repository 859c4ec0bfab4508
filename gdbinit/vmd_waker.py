"""Keeps a replay from sleeping through the guest's idle time.

A replay knows the time only from its log, and QEMU's main thread looks there when it wakes. Each question on
QMP wakes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import gdb

_PAUSE = 0.002
"""Seconds between two questions."""

_STALLED = 15.0
"""Seconds without an executed instruction after which a replay is taken to have stalled."""

_SECONDS = 10.0
"""How long QEMU may take to answer."""


class Qmp:
    """A client of QEMU's QMP socket. Its lock keeps out vmdebug's own."""

    def __init__(self, channel: socket.socket, answers: IO[bytes]) -> None:
        self._channel, self._answers = channel, answers

    def ask(self, *commands: dict[str, object]) -> list[dict[str, object]]:
        """Send commands in one message, and return their answers.

        Raises:
            gdb.GdbError: QEMU refuses one.
            OSError: QEMU does not answer, or has ended.
        """
        self._channel.sendall(b"".join(json.dumps(each).encode() + b"\n" for each in commands))
        return [self._answer() for _ in commands]

    def _answer(self) -> dict[str, object]:
        while True:
            line = self._answers.readline()
            if not line:
                raise ConnectionResetError("QEMU has ended")
            message = json.loads(line)
            if "error" in message:
                raise gdb.GdbError(f"QEMU: {message['error']['desc']}")
            if "return" in message:
                found: dict[str, object] = message["return"]
                return found


def directory() -> Path:
    """Return the run directory of the guest that GDB is connected to: where the gdbstub's socket is."""
    connection = gdb.selected_inferior().connection
    return Path(connection.details).parent if connection is not None and connection.details else Path()


@contextlib.contextmanager
def _opened() -> Iterator[Qmp]:
    """Connect to QEMU's QMP socket, which serves one client at a time.

    Raises:
        OSError: there is no such socket, or another client uses it.
    """
    beside = directory()
    with contextlib.ExitStack() as held:
        if (lock := beside / "control.lock").exists():
            file = held.enter_context(lock.open("rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        channel = held.enter_context(socket.socket(socket.AF_UNIX))
        channel.settimeout(_SECONDS)
        channel.connect(str(beside / "control.sock"))
        answers = held.enter_context(channel.makefile("rb"))
        answers.readline()
        client = Qmp(channel, answers)
        client.ask({"execute": "qmp_capabilities"})
        yield client


class _Run(NamedTuple):
    """A run of the guest: whether it is over, and whether nothing is asked any more."""

    over: threading.Event
    quiet: threading.Event


class _Keeper:
    """Keeps the replay awake, from a thread of its own, while GDB runs it.

    Args:
        client: The connection to QEMU.
    """

    def __init__(self, client: Qmp) -> None:
        self.client = client
        self._runs: queue.SimpleQueue[_Run | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Ask in the block."""
        run = _Run(threading.Event(), threading.Event())
        self._runs.put(run)
        try:
            yield
        finally:
            run.over.set()
            run.quiet.wait()  # QEMU answers in `_SECONDS`, or not at all

    def end(self) -> None:
        """End the thread."""
        self._runs.put(None)
        self._thread.join()

    def _serve(self) -> None:
        # GDB's own thread must receive the user's Ctrl-C.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (run := self._runs.get()) is not None:
            with contextlib.suppress(OSError, ValueError, gdb.GdbError):
                self._ask(run.over)
            run.quiet.set()

    def _ask(self, over: threading.Event) -> None:
        """Ask until the run is over; stop the guest if it executes nothing any more."""
        position: object = None
        since = time.monotonic()
        while not over.is_set():
            now = self.client.ask({"execute": "query-replay"})[0].get("icount")
            if now != position:
                position, since = now, time.monotonic()
            elif time.monotonic() - since > _STALLED:
                self.client.ask({"execute": "stop"})
                return
            over.wait(_PAUSE)


_keepers: list[_Keeper] = []
"""The one of the outermost `connected`."""


@contextlib.contextmanager
def client() -> Iterator[Qmp]:
    """Connect to QEMU's QMP socket, or use the connection of `connected`; the guest must not run.

    Raises:
        OSError: see `_opened`.
    """
    if _keepers:
        yield _keepers[0].client
    else:
        with _opened() as opened:
            yield opened


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Keep one connection for all runs of the guest in the block: a search has thousands."""
    with contextlib.ExitStack() as held:
        if not _keepers:
            with contextlib.suppress(OSError):  # without it, it is slower, but right
                _keepers.append(_Keeper(held.enter_context(_opened())))
                held.callback(lambda: _keepers.pop().end())
        yield


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep the replay awake in the block, in which GDB runs it; stop it if it executes nothing any more."""
    with connected(), _keepers[0].awake() if _keepers else contextlib.nullcontext():
        yield
