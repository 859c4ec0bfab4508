"""Whose a GDB and its guest are: the owner of a gdbstub.

A gdbstub serves one GDB at a time. An owner is who may use it, and what a session may do with the GDB.
`VmOwner` holds the stub of a VM, `kgdb.owner.KgdbOwner` that of a machine in kgdb, each for a GDB of its own.
`share.SharedOwner` is a guest in the GDB of a person. `UNCLAIMED` is for a stub that no other process knows.

Each owner is made by a function that claims the stub, and keeps it until `release`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from vmdebug import locks
from vmdebug.errors import StateError

INTERACTIVE = "a person's"
"""The second line of `attach.lock` while a person types at the GDB; `gdbinit/vmd_share.py` writes another
one."""


class Owner(Protocol):
    """The owner of a gdbstub."""

    exclusive: bool
    """Whether the session may let go of the guest, connect again, and end GDB."""

    def planted(self, number: int) -> str:
        """Return the MI command that tells GDB of a breakpoint that was set; "" for none."""

    def release(self) -> None:
        """Give the stub back; nothing happens the second time."""


class Claim:
    """A claim that lasts as long as a descriptor is open, and so no longer than this process."""

    exclusive = True

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """A program that this process becomes inherits the claim with it, if it is made inheritable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def planted(self, number: int) -> str:  # noqa: ARG002 - see Owner
        """Return no command: the breakpoints go with GDB."""
        return ""

    def release(self) -> None:
        """Give the stub back; nothing happens the second time."""
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
            lock: The VM's `attach.lock`; it holds the pid of the owner.
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
        os.pwrite(descriptor, f"{os.getpid()}\n{INTERACTIVE if interactive else ''}".encode(), 0)
        return cls(descriptor)


class _Unclaimed:
    exclusive = True

    def planted(self, number: int) -> str:  # noqa: ARG002 - see Owner
        return ""

    def release(self) -> None:
        """Do nothing."""


UNCLAIMED: Owner = _Unclaimed()
"""The owner of a stub that no other process knows; it holds nothing."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that claimed a VM's stub last, as `attach.lock` names it.

    Args:
        pid: Its process id; 0 if unknown.
        interactive: Whether it is a person's GDB that is not shared.
        address: The abstract socket at which a shared GDB lets scripts in; "" if it is not shared.
    """

    pid: int = 0
    interactive: bool = False
    address: str = ""


def holder(lock: Path) -> Holder:
    """Return who wrote a VM's `attach.lock` last; it may have ended since."""
    try:
        pid, _, kind = lock.read_text().partition("\n")
        kind = kind.strip()
        return Holder(int(pid), kind == INTERACTIVE, kind[1:] if kind.startswith("@") else "")
    except (OSError, ValueError):
        return Holder()


def _vm_taken(vm: str, by: Holder) -> StateError:
    name = ""
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{by.pid}/comm").read_text().strip()
    who = f"pid {by.pid} ({name})" if name else f"pid {by.pid or 'unknown'}"
    share = "type `vmd-share` there to share it, or attach with `--share`; or " if by.interactive else ""
    return StateError(
        f"a GDB is attached to {vm} already: {who}",
        hint=f"{share}quit it there, or end it with: kill {by.pid}" if by.pid else "quit it first",
    )
