"""The owner of a gdbstub, and what a session may do with its GDB.

A gdbstub serves one GDB at a time. `VmOwner` owns the stub of a VM, and `kgdb.owner.KgdbOwner` that of a
machine in kgdb, each for a GDB of its own. `share.SharedOwner` uses the GDB of a person. `UNCLAIMED` is for a
stub that no other process can know.

A function that claims the stub makes the owner, which keeps it until `release`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from vmdebug import locks, process
from vmdebug.attach_lock import INTERACTIVE, Holder, holder
from vmdebug.errors import StateError


class Owner(Protocol):
    """The owner of a gdbstub."""

    exclusive: bool
    """Whether the session may detach, connect again, and end GDB."""

    def on_breakpoint(self, number: int) -> str:
        """Return an MI command to execute for a new breakpoint; "" for none."""

    def release(self) -> None:
        """Release the stub; a second call does nothing."""


class Claim:
    """A claim that lasts until its descriptor is closed, at the latest when this process ends."""

    exclusive = True

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """The descriptor; if it is inheritable, a program that this process executes inherits the claim."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def on_breakpoint(self, number: int) -> str:  # noqa: ARG002 - see Owner
        """Return no command: the breakpoints disappear with GDB."""
        return ""

    def release(self) -> None:
        """Release the stub; a second call does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class VmOwner(Claim):
    """The owner of a VM's gdbstub; a context manager that releases it. Made by `claim`."""

    @classmethod
    def claim(cls, lock: Path, vm: str, *, interactive: bool = False) -> Self:
        """Claim the stub of a VM.

        The lock belongs to the descriptor: it passes to GDB through execve(2), and ends with the last process
        that has it open; see flock(2).

        Args:
            lock: The VM's `attach.lock`, which contains the owner's pid.
            vm: The VM's name, for the error.
            interactive: Whether a person will type at the GDB.

        Raises:
            StateError: a GDB is attached already; the message has its pid.
        """
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not locks.try_lock(descriptor):
            os.close(descriptor)
            raise _vm_taken(vm, holder(lock))
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: the lock counts, and its holder stays unknown
            os.pwrite(descriptor, f"{os.getpid()}\n{INTERACTIVE if interactive else ''}".encode(), 0)
        return cls(descriptor)


class _Unclaimed:
    exclusive = True

    def on_breakpoint(self, number: int) -> str:  # noqa: ARG002 - see Owner
        return ""

    def release(self) -> None:
        """Do nothing."""


UNCLAIMED: Owner = _Unclaimed()
"""The owner of a stub that no other process can know; it locks nothing."""


def _vm_taken(vm: str, by: Holder) -> StateError:
    who = process.describe(by.pid) if by.pid else "pid unknown"
    share = "type `vmd-share` there to share it, or attach with `--share`; or " if by.interactive else ""
    return StateError(
        f"a GDB is already attached to {vm}: {who}",
        hint=f"{share}quit it there, or end it with: kill {by.pid}" if by.pid else "quit it first",
    )
