"""The exceptions that vmdebug raises on purpose, and the exit status of each.

::

    VmdebugError            1   base class of all others
    ├── UsageError          2   an option, a GUEST or a vmdebug.toml is invalid
    ├── HostError           3   this machine lacks a program, a package, a permission or disk space
    ├── MismatchError       4   the symbols do not match the kernel
    ├── DeadlineError       5   a timeout passed; says what vmdebug waited for
    ├── BuildError          1   nix or make failed; has their output
    ├── StateError          1   the caller's bug: the current state does not allow the call
    └── VmError             1   the guest, QEMU or GDB failed
        ├── LaunchError     1   QEMU did not start
        ├── GuestDiedError  1   the guest exited or panicked while vmdebug waited for it
        ├── QmpError        1   QEMU refused a QMP command
        └── GdbError        1   GDB refused a command, or has ended

Each has a line with what was wanted and what was found (`message`), a line with what to do (`hint`), and
several lines of evidence (`detail`: argv, exit status, end of a log).
"""

from __future__ import annotations

from typing import ClassVar


class VmdebugError(Exception):
    """A failure that the user can act on.

    Args:
        message: What was wanted and what was found, on one line.
        hint: What to do, on one line; "" if nothing helps.
        detail: Evidence, on several lines, printed unchanged.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __str__(self) -> str:
        return "\n".join(part for part in (self.message, self.hint, self.detail) if part)


class UsageError(VmdebugError):
    """The user's input is invalid."""

    exit_status = 2


class HostError(VmdebugError):
    """This machine lacks something that the call needs."""

    exit_status = 3


class MismatchError(VmdebugError):
    """The symbols do not match the kernel."""

    exit_status = 4


class DeadlineError(VmdebugError):
    """A timeout passed before the awaited event."""

    exit_status = 5


class BuildError(VmdebugError):
    """A build that vmdebug asked for failed."""


class StateError(VmdebugError):
    """The current state does not allow the call, and waiting does not change it."""


class VmError(VmdebugError):
    """The guest, QEMU or GDB failed."""


class LaunchError(VmError):
    """QEMU did not start, or ended before it answered."""


class GuestDiedError(VmError):
    """The guest exited or panicked while vmdebug waited for it."""


class QmpError(VmError):
    """QEMU refused a QMP command."""


class GdbError(VmError):
    """GDB refused a command, or has ended.

    Args:
        message: One line, with the failed command.
        command: The command as GDB received it.
        words: GDB's error message.
    """

    def __init__(
        self, message: str, *, command: str = "", words: str = "", hint: str = "", detail: str = ""
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.command = command
        self.words = words
