"""Runs commands in the shell on the console: the way into a guest if no agent answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vmdebug.channel.port import PortAddress
from vmdebug.channel.serial import framing
from vmdebug.channel.serial.line import SerialLine
from vmdebug.channel.serial.shell import LineShell, Running
from vmdebug.channel.shell import Output, Streams, all_input
from vmdebug.channel.watch import Debugger
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, VmError

PIECE = 1 << 20
"""Bytes of input or output of a command for which a copy reports progress: they take some ten seconds."""

INPUT_PIECE = 32768
"""Bytes of input that fit into the command line; more is first written to a file in the guest."""


class SerialShell:
    """Runs commands in the shell on the console, one at a time.

    Args:
        address: The console's socket and its lock.
        log: The console's log.
        owner: Has this process's open serial line, if there is one, and the debugger.
    """

    largest: int | None = PIECE

    def __init__(self, address: PortAddress, log: Path, *, owner: Owner) -> None:
        self._address = address
        self._log = log
        self._owner = owner

    def begin(self, line: bytes, streams: Streams, *, deadline: Deadline) -> SerialRunning:
        """Start a command; see `Shell.begin`. If its input is a descriptor, read all of it first."""
        data = all_input(streams, deadline)
        with contextlib.ExitStack() as held:
            serial = self._open(held)
            serial.debugger = self._owner.debugger
            serial.shell.wait_ready(deadline)
            text = _with_input(serial.shell, line, data, deadline)
            running = serial.shell.begin(text, deadline=deadline)
            return SerialRunning(running, held.pop_all(), streams)

    def wait_ready(self, deadline: Deadline, *, before: str = "") -> None:
        """Wait until the shell answers.

        Args:
            deadline: When to give up.
            before: A command to run before the answer; it must print nothing, and may run more than once.

        Raises:
            VmdebugError: as `LineShell.wait_ready` does.
        """
        with contextlib.ExitStack() as held:
            self._open(held).shell.wait_ready(deadline, before=before)

    def _open(self, held: contextlib.ExitStack) -> SerialLine:
        """Return this process's open serial line, or open one until `held` ends."""
        if self._owner.line is not None:
            return self._owner.line
        address = self._address
        return held.enter_context(
            SerialLine(address.socket, address.lock, self._log, cause=self._owner.cause)
        )


def _with_input(shell: LineShell, line: bytes, data: bytes | None, deadline: Deadline) -> bytes:
    """Return a command with its input: as a here-document, or in a file that this function writes first."""
    if data is None:
        return line
    if len(data) <= INPUT_PIECE:
        return framing.with_input(line, data)
    found = shell.execute("mktemp", deadline=deadline)
    if found.status != 0:
        raise VmError(
            "cannot create a file in the guest for the command's input",
            detail=found.stderr.decode(errors="replace"),
        )
    file = found.stdout.strip()
    for start in range(0, len(data), INPUT_PIECE):
        piece = framing.with_input(b"cat >>" + file, data[start : start + INPUT_PIECE])
        shell.execute(piece, deadline=deadline)
    return b"{ rm " + file + b"\n" + line + b"\n} <" + file


class Owner(Protocol):
    """The owner of this process's open serial line; see `GuestShell`."""

    line: SerialLine | None
    debugger: Debugger | None
    cause: Callable[[], str]


class SerialRunning:
    """A command that runs over the serial line.

    Args:
        running: The command.
        held: Closes the console, if it was opened for this command.
        streams: Its streams; its output arrives when it has ended.
    """

    def __init__(self, running: Running, held: contextlib.ExitStack, streams: Streams) -> None:
        self._running = running
        self._held = held
        self._streams = streams

    def result(self, deadline: Deadline) -> Output:
        """Wait for the command to end; see `channel.shell.Running.result`."""
        try:
            done = self._running.result(deadline)
        except StateError:
            raise  # the command continues with the guest
        except BaseException:
            self._held.close()
            raise
        self._held.close()
        outputs = []
        for data, sink in ((done.stdout, self._streams.stdout), (done.stderr, self._streams.stderr)):
            if sink is not None and data:
                sink(data)
            outputs.append(data if sink is None else b"")
        return Output(outputs[0], outputs[1], done.status)

    def wait(self, seconds: float) -> bool:  # noqa: ARG002 - the protocol's signature
        """Return True: only `result` waits; see `channel.shell.Running.wait`."""
        return True

    def cancel(self) -> None:
        """End the command; see `channel.shell.Running.cancel`."""
        self._running.cancel()
        self._held.close()

    def settle(self) -> bool:
        """End it, for the serial line carries one command at a time; see `channel.shell.Running.settle`."""
        self.cancel()
        return True
