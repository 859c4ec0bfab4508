"""The interface of every way into the guest: commands with their streams, output and exit status."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import UsageError, VmError

SHOWN = 60
"""Number of characters of a command that an error shows."""

ENDLESS = (
    "this guest takes a command's input only as a whole, before the command starts: end the input, or give"
    " none: `exec --no-stdin`"
)
"""What to do where standard input does not end."""

_CHUNK = 1 << 16

Sink = Callable[[bytes], object]
"""A function that receives output, piece by piece as it arrives."""


@dataclass(frozen=True, slots=True)
class Streams:
    """A command's standard streams.

    Args:
        stdin: All of its input; or a descriptor, or an iterator of pieces, to read it from as the command
            consumes it; None: /dev/null.
        stdout: Called with its standard output; None: `Output.stdout` collects it.
        stderr: Called with its standard error; None: `Output.stderr` collects it.
        on_input: Called with the number of bytes of input that are sent, each time.
    """

    stdin: bytes | int | Iterator[bytes] | None = None
    stdout: Sink | None = None
    stderr: Sink | None = None
    on_input: Callable[[int], object] | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """The exact output of a command, and its exit status; 128 + N if signal N ended it."""

    stdout: bytes
    stderr: bytes
    status: int


class Running(Protocol):
    """A command that runs in the guest."""

    def result(self, deadline: Deadline) -> Output:
        """Wait for the command to end, and return its output and exit status.

        Args:
            deadline: When to end the command with its process group.

        Raises:
            StateError: a debugger has stopped the guest. The command continues when the guest does; then call
                `result` again.
            VmError: the result is lost.
            GuestDiedError: the guest died.
            DeadlineError: the command took too long, and was ended.
        """

    def wait(self, seconds: float) -> bool:
        """Wait for the command to end, and return whether it has; it continues otherwise.

        If the way into the guest only waits for the whole command, return True at once: `result` waits.

        Args:
            seconds: How long to wait.

        Raises:
            VmdebugError: as `result` does.
        """

    def cancel(self) -> None:
        """End the command with its process group, unless it has ended."""

    def settle(self) -> bool:
        """Clean up a command whose result will not be read, and return whether that is finished; do not wait.

        If the way into the guest runs one command at a time, this ends the command.
        """


class Shell(Protocol):
    """A way to run commands in a guest.

    Attributes:
        largest: Bytes of input or of output that one command should have at most; None: any number, because
            they are streamed.
    """

    largest: int | None

    def begin(self, line: bytes, streams: Streams, *, deadline: Deadline) -> Running:
        """Start a command.

        Args:
            line: The argument of `sh -c` in the guest; see `command_line`.
            streams: Its standard streams.
            deadline: When the guest must have accepted it.

        Raises:
            VmdebugError: as `Running.result` does.
        """


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The exit status of a command in the guest, and its output as text.

    Bytes that are not UTF-8 are kept as surrogates: `.encode(errors="surrogateescape")` returns the original.
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
        """Wait for the command to end, and return its output and exit status.

        Args:
            timeout: Seconds to wait; then the command is ended.

        Raises:
            StateError: a debugger has stopped the guest. Call `result` again once it runs.
            VmError: the command failed, and `check` was set; or its result is lost.
            GuestDiedError: the guest panicked or exited.
            DeadlineError: the command took too long, and was ended.
        """
        return self.result_by(Deadline.after(timeout))

    def result_by(self, deadline: Deadline) -> ExecResult:
        """As `result`, with a deadline."""
        done = self._running.result(deadline)
        result = ExecResult(_text(done.stdout), _text(done.stderr), done.status)
        if self._check and done.status != 0:
            raise VmError(
                f"{self._command!r} ended with status {done.status} in the guest",
                detail=result.stderr or result.stdout,
            )
        return result

    def wait(self, *, timeout: float = 60.0) -> bool:
        """Wait for the command to end, and return whether it has; otherwise it continues.

        Without an agent of vmdebug in the guest this returns True at once, and `result` waits.

        Args:
            timeout: Seconds to wait.

        Raises:
            VmdebugError: see `result`.
        """
        return self._running.wait(timeout)

    def cancel(self) -> None:
        """End the command with its process group, unless it has ended."""
        self._running.cancel()

    def settle(self) -> bool:
        """Return whether nothing is left to do for it; see `Running.settle`."""
        return self._running.settle()


def input_of(given: str | bytes | None) -> bytes | None:
    """Return the standard input that a caller gives, as bytes.

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


def all_input(streams: Streams, deadline: Deadline) -> bytes | None:
    """Return all of a command's input, for a way into the guest that needs it before the command starts.

    Args:
        streams: The command's streams; a descriptor or an iterator is read to its end.
        deadline: When the input must have ended.

    Raises:
        DeadlineError: it has not; the hint says what to do.
    """
    if streams.stdin is None or isinstance(streams.stdin, bytes):
        return streams.stdin
    if not isinstance(streams.stdin, int):
        return b"".join(streams.stdin)
    pieces = []
    while not deadline.passed:
        if wait_ready(streams.stdin, seconds=deadline.remaining):
            pieces.append(os.read(streams.stdin, _CHUNK))
            if not pieces[-1]:
                return b"".join(pieces)
    raise deadline.error("the end of the command's standard input", hint=ENDLESS)


def command_line(command: str | Sequence[str]) -> bytes:
    """Return the argument of `sh -c` in the guest for a command.

    Args:
        command: A line of shell, which is passed unchanged; or an argv, which is quoted.

    Raises:
        UsageError: it is empty, contains a NUL, or is neither a line nor an argv.
    """
    words = [command] if isinstance(command, str) else command
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise UsageError(
            f"{command!r} is not a command: give a line of text, or a list of words",
            hint='for example "uname -a" or ["uname", "-a"]',
        )
    text = command if isinstance(command, str) else shlex.join(words)
    if not text.strip():
        raise UsageError("the command is empty", hint="name the program to run in the guest")
    if "\0" in text:
        raise UsageError(
            "the command contains a NUL byte, which no shell accepts",
            hint="pass binary data as standard input, or write it as printf escapes",
        )
    return text.encode("utf-8", "surrogateescape")


def shown(line: bytes) -> str:
    """Return the beginning of a command in backquotes, for an error."""
    text = line.decode(errors="replace")
    return f"`{text[:SHOWN]}…`" if len(text) > SHOWN else f"`{text}`"


def _text(output: bytes) -> str:
    return output.decode(errors="surrogateescape")
