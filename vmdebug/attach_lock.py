"""Who has claimed a VM's gdbstub: the content of its `attach.lock`. `debugger.ownership` makes the claim."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from vmdebug import locks

INTERACTIVE = "a person's"
"""The second line of `attach.lock` while a person types at the GDB; `gdbinit/vmd_share.py` writes another
one."""


class Holder(msgspec.Struct, frozen=True):
    """The last process that claimed a VM's stub, according to `attach.lock`.

    Args:
        pid: Its process id; 0 if unknown.
        interactive: Whether it is a person's GDB that is not shared.
        address: The abstract socket on which a shared GDB accepts scripts; "" if it is not shared.
    """

    pid: int = 0
    interactive: bool = False
    address: str = ""


def holder(lock: Path) -> Holder:
    """Return the process that wrote `attach.lock` last; it may have ended since."""
    try:
        pid, _, kind = lock.read_text().partition("\n")
        kind = kind.strip()
        return Holder(int(pid), kind == INTERACTIVE, kind[1:] if kind.startswith("@") else "")
    except (OSError, ValueError):
        return Holder()


def program(lock: Path) -> int:
    """Return the pid of another process that holds the lock and is no person's GDB; 0 if there is none.

    Such a program, for example a trace, stops the guest for a moment, and resumes it by itself.
    """
    found = holder(lock)
    if found.pid in (0, os.getpid()) or found.interactive or found.address:
        return 0
    return found.pid if locks.is_held(lock, found.pid) else 0
