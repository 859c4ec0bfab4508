"""How a script gets into a person's GDB.

The person's GDB lets in whoever asks at its socket (`gdbinit/vmd_share.py`), and sends a terminal on which it
speaks MI. The prompt stays the person's.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from vmdebug.deadline import Deadline
from vmdebug.debugger.ownership import holder
from vmdebug.errors import DeadlineError, GdbError, StateError

_WORD_BYTES = 256


@dataclass(frozen=True, slots=True)
class SharedOwner:
    """A guest in a person's GDB, until `line` is closed; made by `ask`.

    Args:
        pid: GDB's process id.
        terminal: Descriptor of our end of the terminal on which that GDB speaks MI.
        line: The connection; when it ends, GDB takes out the breakpoints that were set over the terminal.
    """

    pid: int
    terminal: int
    line: socket.socket

    exclusive = False

    def planted(self, number: int) -> str:
        """Return the command that has GDB take the breakpoint out if this process is killed."""
        return f"-vmd-own {number}"

    def release(self) -> None:
        """Leave the GDB; nothing happens the second time."""
        self.line.close()


def ask(lock: Path, timeout: float) -> SharedOwner | None:
    """Ask the GDB that is attached to let us in.

    Args:
        lock: The VM's `attach.lock`, which names its socket.
        timeout: Seconds; GDB answers as soon as it has no command of the person to execute.

    Returns:
        None if no GDB is shared.

    Raises:
        StateError: another script is in it.
        GdbError: it has no terminal to give, or ended meanwhile.
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
    line.settimeout(deadline.left("the GDB that is shared to let us in"))
    try:
        word, terminals, _, _ = socket.recv_fds(line, _WORD_BYTES, 1)
    except TimeoutError:
        raise DeadlineError(
            f"the GDB that is shared, pid {pid}, did not let us in",
            hint="it lets scripts in at its prompt and while the guest runs: it may wait for an answer there",
        ) from None
    if terminals:
        return terminals[0]
    if word:
        raise StateError(
            f"the GDB that is shared, pid {pid}, has a script in it already: {word.decode().strip()}",
            hint="wait for its end, or end it",
        )
    raise GdbError(f"the GDB that is shared, pid {pid}, has ended or has no terminal to give")
