"""Connects a script to a person's GDB.

The person's GDB accepts scripts on a socket (`gdbinit/vmd_share.py`), and sends them a terminal on which it
speaks MI. The person keeps the prompt.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from vmdebug.attach_lock import holder
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GdbError, StateError

_WORD_BYTES = 256


@dataclass(frozen=True, slots=True)
class SharedOwner:
    """The connection of a script to a person's GDB, until `line` is closed; made by `ask`.

    Args:
        pid: GDB's process id.
        terminal: Descriptor of the script's end of the terminal on which GDB speaks MI.
        line: The connection. When it ends, GDB deletes the breakpoints that the script has set.
    """

    pid: int
    terminal: int
    line: socket.socket

    exclusive = False

    def on_breakpoint(self, number: int) -> str:
        """Return the command that makes GDB delete the breakpoint if this process is killed."""
        return f"-vmd-script-breakpoint {number}"

    def release(self) -> None:
        """Disconnect from GDB; a second call does nothing."""
        self.line.close()


def ask(lock: Path, timeout: float) -> SharedOwner | None:
    """Connect to the attached GDB, if it is shared.

    Args:
        lock: The VM's `attach.lock`, which names its socket.
        timeout: Seconds to wait; GDB answers when it executes no command of the person.

    Returns:
        None if no GDB is shared.

    Raises:
        StateError: another script uses it.
        GdbError: it cannot open a terminal, or has ended.
        DeadlineError: it does not answer.
    """
    found = holder(lock)
    if not found.address:
        return None
    line = socket.socket(socket.AF_UNIX)
    try:
        try:
            line.connect(f"\0{found.address}")
        except ConnectionRefusedError:
            line.close()
            return None  # that GDB has ended; the lock file still names it
        terminal = _terminal(line, found.pid, Deadline.after(timeout))
    except BaseException:
        line.close()
        raise
    return SharedOwner(found.pid, terminal, line)


def _terminal(line: socket.socket, pid: int, deadline: Deadline) -> int:
    """Return the terminal that GDB sends."""
    line.settimeout(deadline.left("the shared GDB to accept the script"))
    try:
        word, terminals, _, _ = socket.recv_fds(line, _WORD_BYTES, 1)
    except TimeoutError:
        raise DeadlineError(
            f"the shared GDB, pid {pid}, did not accept the script",
            hint="it accepts scripts at its prompt, and while the guest runs; it may wait for its user",
        ) from None
    if terminals:
        return terminals[0]
    if word:
        raise StateError(
            f"another script uses the shared GDB, pid {pid}: {word.decode().strip()}",
            hint="wait until it ends, or end it",
        )
    raise GdbError(f"the shared GDB, pid {pid}, has ended or cannot open a terminal")
