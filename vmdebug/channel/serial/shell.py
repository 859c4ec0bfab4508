"""The shell on a guest's console: whether it is at its prompt, and the command that it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from vmdebug.channel.serial import ready
from vmdebug.channel.serial.exchange import Exchange
from vmdebug.channel.serial.ready import Line
from vmdebug.channel.shell import Output, command_line
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, VmError

IDLE = "console"
EXEC = "exec"
"""The activities of a client in its lock file: it holds the console, or it runs a command."""


class LineShell:
    """The shell on a console, which runs one command at a time.

    Args:
        line: The console.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self.ready = False
        """Whether the shell has answered on this connection."""
        self.interrupted = False
        """Whether an abandoned command may still run in the foreground."""
        self.running: Running | None = None
        """The command whose result has not been read yet."""

    @property
    def unfinished(self) -> bool:
        """Whether a command may run in the foreground when this client disconnects."""
        return self.interrupted or self.running is not None

    def forget(self) -> None:
        """Discard the state, after the guest was restored to an earlier one, or the connection was closed."""
        self.ready = self.interrupted = False
        self.running = None

    def wait_ready(self, deadline: Deadline, *, before: str = "") -> None:
        """Wait until the shell answers; return at once if it has answered before.

        Args:
            deadline: When to give up.
            before: A command to run before the answer; it must print nothing, and may run more than once.

        Raises:
            VmError: a program on the console asks for a password or a decision.
            GuestDiedError: the guest died.
            DeadlineError: no shell answered.
        """
        if not self.ready:
            ready.wait(self.line, deadline, interrupting=self.interrupted, before=before)
            self.ready, self.interrupted = True, False

    def execute(self, command: str | Sequence[str] | bytes, *, deadline: Deadline) -> Output:
        """Run a command in the guest.

        The console's shell starts it as `sh -c COMMAND`, in the shell's directory and environment. It has a
        session of its own without a terminal, and /dev/null as its input. Its background processes continue.
        Kernel messages that arrive meanwhile stay for `Console.expect`.

        Args:
            command: A line of shell, an argv, or a result of `command_line`.
            deadline: When to end the command with its process group.

        Raises:
            UsageError: the command is empty or contains a NUL.
            VmError: the command killed the shell that it ran in; or the guest has no writable directory, or
                lacks a program.
            GuestDiedError: the guest died.
            DeadlineError: the command took too long, and was ended. The console is at its prompt, unless the
                message says otherwise.
        """
        return self.begin(command, deadline=deadline).result(deadline)

    def begin(self, command: str | Sequence[str] | bytes, *, deadline: Deadline) -> Running:
        """Start a command in the guest; see `execute`.

        The console belongs to the command until its result is read. If an earlier command still runs, wait
        for its end first.

        Raises:
            VmdebugError: as `execute` does.
        """
        text = command if isinstance(command, bytes) else command_line(command)
        if self.running is not None:
            self.running.result(deadline)
        if self.interrupted:
            self.ready = False
            self.wait_ready(deadline)
        unread = self.line.take()
        exchange = Exchange(self.line, deadline, text)
        self.line.note(EXEC)
        running = Running(self, exchange, unread)
        with running.ended_by_errors():
            exchange.begin(text)
        self.running = running
        return running


class Running:
    """A command that runs in the guest; made by `begin`."""

    def __init__(self, shell: LineShell, exchange: Exchange, unread: bytes) -> None:
        self._shell = shell
        self._exchange = exchange
        self._unread = unread
        self._result: Output | None = None
        self._failure: BaseException | None = None

    def result(self, deadline: Deadline) -> Output:
        """Wait for the command to end, and return its output and exit status; may be called again.

        Args:
            deadline: When to end the command with its process group.

        Raises:
            StateError: a debugger has stopped the guest. The command continues when the guest does; then call
                `result` again.
            VmdebugError: as `execute` does.
        """
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            with self.ended_by_errors():
                self._result = self._exchange.result(deadline)
            self._close()
        return self._result

    def cancel(self) -> None:
        """End the command, unless it has ended."""
        if self._result is None and self._failure is None:
            self._failure = VmError("the command was cancelled")
            self._abandon(self._failure)
            self._close()

    @contextlib.contextmanager
    def ended_by_errors(self) -> Iterator[None]:
        """End the command if the block raises, unless a debugger has stopped the guest."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, StateError) and self._shell.running is self:
                raise
            self._failure = error
            self._abandon(error)
            self._close()
            raise

    def _abandon(self, error: BaseException) -> None:
        if not self._exchange.abandon(error):
            self._shell.interrupted = True

    def _close(self) -> None:
        shell = self._shell
        if shell.running is self:
            shell.running = None
        shell.line.put_back(self._unread + b"".join(self._exchange.kernel_messages))
        # If the command could not be ended, the next client has to end it.
        shell.line.note(EXEC if shell.interrupted else IDLE)
