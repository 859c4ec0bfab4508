"""Everything that vmdebug raises on purpose, and the exit status each one becomes.

::

    VmdebugError            1   base; `except VmdebugError` catches all of ours
    ├── UsageError          2   an option, a GUEST, a vmdebug.toml that cannot be right
    ├── HostError           3   the machine lacks a program, a package, a permission, space
    ├── MismatchError       4   symbols and kernel do not belong together
    ├── DeadlineError       5   a deadline passed; says what was waited for
    ├── BuildError          1   nix or make failed; carries their own words
    ├── StateError          1   the caller's bug: a call that the present state does not allow
    └── VmError             1   the guest's or QEMU's fault
        ├── LaunchError     1   QEMU did not start
        ├── GuestDiedError  1   it exited or panicked while something was expected of it
        ├── QmpError        1   QEMU refused a QMP command
        └── GdbError        1   GDB refused a command, or is gone

Each carries one line of what was wanted and found (`message`), one line of what
to do (`hint`), and a block of evidence (`detail`: argv, exit status, end of a log).
"""

from __future__ import annotations

from typing import ClassVar


class VmdebugError(Exception):
    """A failure that a user can act on.

    Args:
        message: One line: what was wanted and what was found.
        hint: One line: what to do about it; empty when there is nothing.
        detail: Evidence of several lines, shown as it is.
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
    """What the user wrote cannot be right."""

    exit_status = 2


class HostError(VmdebugError):
    """This machine lacks something that the call needs."""

    exit_status = 3


class MismatchError(VmdebugError):
    """Symbols and kernel do not belong together."""

    exit_status = 4


class DeadlineError(VmdebugError):
    """A deadline passed before what was waited for happened."""

    exit_status = 5


class BuildError(VmdebugError):
    """A build that vmdebug asked for failed."""


class StateError(VmdebugError):
    """The call needs another state than the present one; waiting would not help."""


class VmError(VmdebugError):
    """The guest, QEMU or GDB did not do what was asked."""


class LaunchError(VmError):
    """QEMU did not start, or ended before it answered."""


class GuestDiedError(VmError):
    """The guest exited or panicked while something was expected of it."""


class QmpError(VmError):
    """QEMU refused a QMP command."""


class GdbError(VmError):
    """GDB refused a command, or has ended.

    Args:
        message: One line; the failed command is part of it.
        command: The command as GDB got it.
        words: GDB's own message.
    """

    def __init__(
        self, message: str, *, command: str = "", words: str = "", hint: str = "", detail: str = ""
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.command = command
        self.words = words
