"""A command in the guest, its output as text; `shell` has it as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmdebug.channel.serial import shell
from vmdebug.channel.serial.console import Console
from vmdebug.deadline import Deadline
from vmdebug.errors import VmError


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command in the guest left: its exit status and its output, as text.

    Bytes that are no UTF-8 survive: `.encode(errors="surrogateescape")` gives them back.
    """

    stdout: str
    stderr: str
    status: int


class Job:
    """A command that runs in the guest; made by `begin`.

    The guest's shell, and with it the console, is the command's until its result has been heard.
    """

    def __init__(self, command: str | Sequence[str], running: shell.Running, *, check: bool) -> None:
        self._command = command
        self._running = running
        self._check = check

    def result(self, *, timeout: float = 60.0) -> ExecResult:
        """Wait for its end, and return what it left.

        Args:
            timeout: Seconds.

        Raises:
            StateError: a debugger has stopped the guest; ask again once it runs.
            VmError: the command failed, and that is an error; or see `shell.execute`.
            GuestDiedError: the guest panicked or exited.
            DeadlineError: it took too long; it has been ended.
        """
        return self.heard(Deadline.after(timeout))

    def heard(self, deadline: Deadline) -> ExecResult:
        """Return its result by a deadline; see `result`."""
        done = self._running.result(deadline)
        result = ExecResult(_text(done.stdout), _text(done.stderr), done.status)
        if self._check and done.status != 0:
            raise VmError(
                f"{self._command!r} ended with status {done.status} in the guest",
                detail=result.stderr or result.stdout,
            )
        return result


def begin(console: Console, command: str | Sequence[str], *, deadline: Deadline, check: bool) -> Job:
    """Set a command going in the guest's shell, once there is one; raises as `run` does.

    Args:
        console: An open console.
        command: A line for its shell, or an argv.
        deadline: For setting it going.
        check: Whether an exit status other than 0 is an error, for its result.
    """
    console.wait_ready(deadline)
    return Job(command, shell.begin(console, command, deadline=deadline), check=check)


def run(console: Console, command: str | Sequence[str], *, deadline: Deadline, check: bool) -> ExecResult:
    """Run a command in the guest's shell, once there is one.

    Args:
        console: An open console.
        command: A line for its shell, or an argv.
        deadline: For all of it.
        check: Whether an exit status other than 0 is an error.

    Raises:
        VmError: the command failed and `check` is set; or see `shell.execute`.
        GuestDiedError: the guest panicked or exited.
        DeadlineError: the guest's shell or the command took too long.
    """
    return begin(console, command, deadline=deadline, check=check).heard(deadline)


def _text(output: bytes) -> str:
    return output.decode(errors="surrogateescape")
