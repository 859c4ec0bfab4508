"""What every way into the guest offers: a command with its streams, its output and its exit status."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError, VmError

SHOWN = 60
"""Characters of a command that an error shows."""

Sink = Callable[[bytes], object]
"""Called with a piece of output as it arrives."""


@dataclass(frozen=True, slots=True)
class Streams:
    """A command's standard streams.

    Args:
        stdin: Its whole input; or a descriptor, which is read as the command takes it; None: /dev/null.
        stdout: Called with its standard output; None: the result has it.
        stderr: Called with its standard error; None: the result has it.
    """

    stdin: bytes | int | None = None
    stdout: Sink | None = None
    stderr: Sink | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What a command left: its output, byte for byte, and its exit status (128 + N: signal N ended it)."""

    stdout: bytes
    stderr: bytes
    status: int


class Running(Protocol):
    """A command that runs in the guest."""

    def result(self, deadline: Deadline) -> Output:
        """Wait for its end, and return what it left.

        Args:
            deadline: When it is ended, with its process group.

        Raises:
            StateError: a debugger has stopped the guest; the command goes on with the guest, and `result` can
                be called again.
            VmError: its result is lost.
            GuestDiedError: the guest died.
            DeadlineError: it took too long; it has been ended.
        """

    def cancel(self) -> None:
        """End the command with its process group, unless it has ended."""

    def settle(self) -> bool:
        """Return whether nothing is left to do for a command whose result nobody will ask for. Never waits.

        Where the way into the guest runs one command at a time, this ends the command.
        """


class Shell(Protocol):
    """A way to run commands in a guest."""

    def begin(self, line: bytes, streams: Streams, *, deadline: Deadline) -> Running:
        """Start a command.

        Args:
            line: What the guest's `sh -c` gets; see `command_line`.
            streams: Its standard streams.
            deadline: Until when the guest has to take it.

        Raises:
            VmdebugError: as `Running.result`.
        """


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command in the guest left: its exit status and its output, as text.

    Bytes that are not UTF-8 survive: `.encode(errors="surrogateescape")` gives them back.
    """

    stdout: str
    stderr: str
    status: int


class Job:
    """A command that runs in the guest; `DebugSession.exec(wait=False)` returns one."""

    def __init__(self, command: str | Sequence[str], running: Running, *, check: bool) -> None:
        self._command = command
        self._running = running
        self._check = check

    def result(self, *, timeout: float = 60.0) -> ExecResult:
        """Wait for the command's end, and return what it left.

        Args:
            timeout: Seconds.

        Raises:
            StateError: a debugger has stopped the guest; call again once it runs.
            VmError: the command failed, and `check` was set; or its result is lost.
            GuestDiedError: the guest panicked or exited.
            DeadlineError: it took too long; it has been ended.
        """
        return self.result_by(Deadline.after(timeout))

    def result_by(self, deadline: Deadline) -> ExecResult:
        """Return its result by a deadline; see `result`."""
        done = self._running.result(deadline)
        result = ExecResult(_text(done.stdout), _text(done.stderr), done.status)
        if self._check and done.status != 0:
            raise VmError(
                f"{self._command!r} ended with status {done.status} in the guest",
                detail=result.stderr or result.stdout,
            )
        return result

    def cancel(self) -> None:
        """End the command with its process group, unless it has ended."""
        self._running.cancel()

    def settle(self) -> bool:
        """Return whether nothing is left to do for it; see `Running.settle`."""
        return self._running.settle()


def input_of(given: str | bytes | None) -> bytes | None:
    """Return what a caller gives as standard input as bytes.

    Raises:
        UsageError: it is neither text nor bytes.
    """
    if isinstance(given, str):
        return given.encode("utf-8", "surrogateescape")
    if isinstance(given, bytearray | memoryview):
        return bytes(given)
    if given is None or isinstance(given, bytes):
        return given
    raise UsageError(
        f"stdin={given!r} is a {type(given).__name__}: a command's input is text or bytes",
        hint="read a file first: stdin=Path(…).read_bytes()",
    )


def command_line(command: str | Sequence[str]) -> bytes:
    """Return a command as the bytes that the guest's `sh -c` gets.

    Args:
        command: A line of shell, as it is; or an argv, quoted.

    Raises:
        UsageError: it is empty, holds a NUL, or is neither a line nor an argv.
    """
    words = [command] if isinstance(command, str) else command
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise UsageError(
            f"{command!r} is no command: it is a line of text, or a list of words of text",
            hint='for example "uname -a" or ["uname", "-a"]',
        )
    text = command if isinstance(command, str) else shlex.join(words)
    if not text.strip():
        raise UsageError("the command is empty", hint="name the program to run in the guest")
    if "\0" in text:
        raise UsageError(
            "the command holds a NUL byte, which no shell can take",
            hint="send binary data by standard input, or write it as printf escapes",
        )
    return text.encode("utf-8", "surrogateescape")


def shown(line: bytes) -> str:
    """Return a command for an error: its beginning, in backquotes."""
    text = line.decode(errors="replace")
    return f"`{text[:SHOWN]}…`" if len(text) > SHOWN else f"`{text}`"


def _text(output: bytes) -> str:
    return output.decode(errors="surrogateescape")
