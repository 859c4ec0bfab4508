"""The connection to one GDB: commands, and the state in which each is allowed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from vmdebug.deadline import Deadline
from vmdebug.debugger.gdb_process import GdbProcess
from vmdebug.debugger.memory import COMMAND_SECONDS
from vmdebug.debugger.runstate import RunState, State
from vmdebug.debugger.transport import Answer, Transport
from vmdebug.errors import GdbError

NOT_RUNNING = (State.STOPPED, State.UNCONNECTED, State.DETACHED)
"""The states in which GDB can read symbols and memory."""


class Connection:
    """A transport, and the run state that GDB reports over it. Made by `start` or `join`.

    Args:
        transport: The transport to GDB.
        run: The listener that the transport was started with.
    """

    def __init__(self, transport: Transport, run: RunState) -> None:
        self._transport = transport
        self.run = run

    @classmethod
    def start(cls, argv: Sequence[str | os.PathLike[str]], *, env: Mapping[str, str]) -> Self:
        """Start a GDB; raises as `GdbProcess.start` does."""
        return cls._over(GdbProcess.start(argv, env=env))

    @classmethod
    def join(cls, pid: int, terminal: int) -> Self:
        """Use a GDB of another process; see `GdbProcess.join`."""
        return cls._over(GdbProcess.join(pid, terminal))

    @classmethod
    def _over(cls, gdb: GdbProcess) -> Self:
        run = RunState()
        return cls(Transport.start(gdb, run), run)

    @property
    def pid(self) -> int:
        """GDB's process id."""
        return self._transport.pid

    @property
    def state(self) -> State:
        """The present state of GDB and the guest."""
        if self.run.state is State.RUNNING:
            self._transport.refresh()
        return self.run.state

    def execute(self, command: str, deadline: Deadline) -> Answer:
        """Execute an MI command.

        Raises:
            GuestDiedError: the guest has ended meanwhile.
            GdbError: GDB refused the command, or has ended.
            DeadlineError: GDB did not answer.
        """
        before = self.run.state
        try:
            return self._transport.execute(command, deadline)
        except GdbError as error:
            if self.run.state is State.GONE and before is not State.GONE:
                raise self.run.died(command) from error
            raise

    def ask(self, command: str, timeout: float = COMMAND_SECONDS) -> Answer:
        """Execute an MI command within `timeout` seconds; raises as `execute` does."""
        return self.execute(command, Deadline.after(timeout))

    def fetch(self, command: str, timeout: float = COMMAND_SECONDS) -> Mapping[str, Any]:
        """Execute an MI command, and return the values in its result; raises as `execute` does."""
        return self.execute(command, Deadline.after(timeout)).payload

    def wait(self, done: Callable[[], bool], deadline: Deadline, what: str) -> None:
        """Read GDB's output until `done()` returns true or GDB has ended; see `Transport.wait`."""
        self._transport.wait(done, deadline, what)

    def need(self, call: str, *allowed: State) -> None:
        """Raise unless the present state is one of `allowed`; see `RunState.need`."""
        if self.run.state not in allowed:
            self._transport.refresh()
            self.run.need(call, *allowed)

    def exchanges(self) -> tuple[str, ...]:
        """Return the last commands, answers and events; see `Transport.exchanges`."""
        return self._transport.exchanges()

    def close(self, deadline: Deadline) -> None:
        """End GDB, or disconnect from a GDB of another process; see `Transport.close`."""
        self._transport.close(deadline)
