"""A script in a person's GDB: how it gets in, and what is different there.

The person's GDB lets in whoever asks at its socket (`gdbinit/vmd_share.py`), and gives them a
terminal on which it speaks MI. Its own prompt stays the person's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vmdebug.deadline import Deadline
from vmdebug.debugger import attach, mi
from vmdebug.debugger.breakpoints import Breakpoint
from vmdebug.debugger.control import STOP_SECONDS
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.identity import Identity, Wanted
from vmdebug.debugger.runstate import RunState, State
from vmdebug.debugger.transport import Transport
from vmdebug.errors import DeadlineError, GdbError, StateError, VmdebugError

_WORD_BYTES = 256


@dataclass(frozen=True, slots=True)
class Lease:
    """A place in a person's GDB, held until `line` is closed.

    Args:
        pid: GDB's process id.
        terminal: Descriptor of our end of the terminal on which it speaks MI.
        line: The connection; GDB takes out what we have planted when it ends.
    """

    pid: int
    terminal: int
    line: socket.socket


def ask(lock: Path, deadline: Deadline) -> Lease | None:
    """Ask the GDB that is attached to let us in.

    Args:
        lock: The VM's `attach.lock`, where it says how.
        deadline: When to give up: it answers as soon as it has no command of the person's to carry out.

    Returns:
        None where no GDB is shared.

    Raises:
        StateError: another script is in there.
        GdbError: it has no terminal for us, or ended meanwhile.
        DeadlineError: it does not answer.
    """
    holder = attach.holder(lock)
    if not holder.address:
        return None
    line = socket.socket(socket.AF_UNIX)
    try:
        try:
            line.connect(f"\0{holder.address}")
        except ConnectionRefusedError:
            line.close()
            return None  # GDB has gone, and its word has stayed
        terminal = _terminal(line, holder.pid, deadline)
    except BaseException:
        line.close()
        raise
    return Lease(holder.pid, terminal, line)


def _terminal(line: socket.socket, pid: int, deadline: Deadline) -> int:
    """Return the terminal that GDB sends us."""
    line.settimeout(deadline.left("the GDB that is shared to let us in"))
    try:
        word, terminals, _, _ = socket.recv_fds(line, _WORD_BYTES, 1)
    except TimeoutError:
        raise DeadlineError(
            f"the GDB that is shared, pid {pid}, did not let us in",
            hint="it does so at its prompt and while the guest runs: does it wait for an answer there?",
        ) from None
    if terminals:
        return terminals[0]
    if word:
        raise StateError(
            f"the GDB that is shared, pid {pid}, has a script in it already: {word.decode().strip()}",
            hint="wait for its end, or end it",
        )
    raise GdbError(f"the GDB that is shared, pid {pid}, has ended or has no terminal to give")


class SharedGdb(Gdb):
    """The GDB of a person, shared; a context manager that leaves it at its end.

    Made by `join`. What a script plants goes when it leaves; the guest, stopped or running,
    is left to the person.
    """

    _lease: Lease

    @classmethod
    def join(
        cls,
        lease: Lease,
        *,
        deadline: Deadline,
        interrupter: Callable[[], None] | None = None,
        wanted: Wanted | None = None,
    ) -> Self:
        """Use a GDB that has let us in.

        Args:
            lease: See `ask`; it is given back at the end.
            deadline: When to give up.
            interrupter: See `Gdb.connect`.
            wanted: See `Gdb.connect`.

        Raises:
            StateError: it is connected to no guest.
            MismatchError: its symbols are not those of the kernel in the guest.
            GdbError: it refuses to talk.
            DeadlineError: it does not answer.
        """
        state = RunState()
        gdb = cls(Transport.join(lease.pid, lease.terminal, state), state)
        gdb._lease = lease
        gdb._interrupter = interrupter
        try:
            gdb._adopt(deadline, wanted)
        except BaseException:
            gdb.close()
            raise
        return gdb

    def detach(self, *, timeout: float = STOP_SECONDS) -> None:  # noqa: ARG002 - see Gdb.detach
        """Refuse to let go of the guest, which is the person's.

        Raises:
            StateError: always.
        """
        raise StateError(
            f"the guest is held by a GDB that is shared, pid {self.pid}: only who works in it lets go",
            hint="leave it by close(), or type `detach` there",
        )

    def close(self, *, timeout: float = STOP_SECONDS) -> None:
        """Take out what was planted here, and leave; GDB and the guest stay as they are.

        Args:
            timeout: Seconds.
        """
        try:
            with contextlib.suppress(VmdebugError):
                self._unplant(timeout)
        finally:
            self._transport.close(Deadline.after(timeout))
            self._lease.line.close()

    def _adopt(self, deadline: Deadline, wanted: Wanted | None) -> None:
        """Take over how GDB and the guest stand: a terminal of MI is not told what came before it."""
        stands = self._execute("-vmd-stands", deadline).payload["state"]
        if stands == "unconnected":
            raise StateError(
                f"the GDB that is shared, pid {self.pid}, is connected to no guest",
                hint="quit it, and attach again: vmdebug attach --share",
            )
        state = self._run_state
        if state.state is State.UNCONNECTED:  # else it has changed meanwhile, and we were told
            record = mi.read(f"*{stands}".encode())
            assert record is not None  # noqa: S101 - for the type checker
            state.notice(record)
            state.take_stop()  # nobody here has waited for it
        self._identity = None if wanted is None else Identity(wanted, self.notes.append)
        if self._identity is not None and self.state is State.STOPPED:
            self._identity.settle(self._payload)

    def _insert(self, command: str, where: str, **rest: Any) -> Breakpoint:
        made = super()._insert(command, where, **rest)
        # Should we be killed, GDB takes it out.
        self._ask(f"-vmd-own {made.number}")
        return made

    def _unplant(self, timeout: float) -> None:
        if self._breakpoints and self.state in (State.STOPPED, State.RUNNING):
            with self.held(timeout=timeout):
                for each in list(self._breakpoints.values()):
                    self.delete(each)
