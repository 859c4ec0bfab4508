"""A command in the guest, its output as text; `shell` has it as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmdebug.deadline import Deadline
from vmdebug.errors import VmError
from vmdebug.vm import shell
from vmdebug.vm.console import Console


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command in the guest left: its exit status and its output, as text.

    Bytes that are no UTF-8 survive: `.encode(errors="surrogateescape")` gives them back.
    """

    stdout: str
    stderr: str
    status: int


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
    console.wait_ready(deadline)
    done = shell.execute(console, command, deadline=deadline)
    result = ExecResult(_text(done.stdout), _text(done.stderr), done.status)
    if check and done.status != 0:
        raise VmError(
            f"{command!r} ended with status {done.status} in the guest",
            detail=result.stderr or result.stdout,
        )
    return result


def _text(output: bytes) -> str:
    return output.decode(errors="surrogateescape")
