"""The shell of a guest, through the best way that answers; the way is stored beside the VM."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vmdebug.channel import shell
from vmdebug.channel.agent.shell import UART_WINDOW, AgentShell
from vmdebug.channel.finding import PROMPT_SECONDS, Search
from vmdebug.channel.found import Found, Kind
from vmdebug.channel.port import Ways
from vmdebug.channel.shell import ExecResult, Job, Shell, Streams
from vmdebug.channel.watch import Debugger, Watch
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, StateError

if TYPE_CHECKING:
    from vmdebug.channel.serial.line import SerialLine

SEED_BYTES = 16


class GuestShell:
    """Runs commands in a guest.

    Args:
        ways: The host's ends of the ways into it.
        check: Raises StateError if the guest does not run.
        cause: Returns how the guest died; "" while it lives.
    """

    def __init__(
        self, ways: Ways, *, check: Callable[[], None], cause: Callable[[], str] = lambda: ""
    ) -> None:
        self.line: SerialLine | None = None
        """The serial line, if this process has it open; commands on the serial line use it."""
        self.debugger: Debugger | None = None
        """The debugger of this process that may stop the guest."""
        self._ways = ways
        self._stopped = check
        self.cause = cause
        self._found: Found | None = None
        self._shell: Shell | None = None
        self._running: list[Job] = []
        # Commands of `run` that a stop of the guest has interrupted; nothing reads their results.
        self._abandoned: list[Job] = []

    @property
    def found(self) -> Found | None:
        """The way that has answered; None if none was searched for yet."""
        if self._found is None:
            self._found = Found.read(self._ways.memory)
        return self._found

    def begin(
        self, command: str | Sequence[str], *, streams: Streams, deadline: Deadline, check: bool = False
    ) -> Job:
        """Start a command, once the guest has a shell.

        Args:
            command: A line of shell, or an argv.
            streams: Its standard streams.
            deadline: When the guest must have started it.
            check: Whether `Job.result` raises if the exit status is not 0.

        Raises:
            UsageError: the command is empty or contains a NUL.
            StateError: the guest does not run; or another client uses the only way into it.
            VmError: the guest has no shell, or cannot start the command.
            GuestDiedError: the guest died.
            DeadlineError: no shell answered.
        """
        line = shell.command_line(command)
        self._abandoned = [each for each in self._abandoned if not each.settle()]
        job = Job(command, self.wait(deadline).begin(line, streams, deadline=deadline), check=check)
        self._running.append(job)
        return job

    def run(
        self,
        command: str | Sequence[str],
        *,
        streams: Streams,
        deadline: Deadline,
        check: bool = False,
    ) -> ExecResult:
        """Run a command to its end; see `begin` and `Job.result`."""
        job = self.begin(command, streams=streams, deadline=deadline, check=check)
        try:
            return job.result_by(deadline)
        except StateError:
            self._abandoned.append(job)
            raise
        finally:
            self._running.remove(job)

    def wait(self, deadline: Deadline) -> Shell:
        """Wait until a way into the guest answers, and return its shell.

        Raises:
            VmdebugError: see `begin`.
        """
        if self._shell is None:
            found = self.found
            if found is None or found.kind == "serial":
                found = self._find(deadline, patience=PROMPT_SECONDS if found is None else 0.0)
                self._remember(found)
            self._shell = self._shell_by(found.kind)
        return self._shell

    def greet(self, deadline: Deadline, *, copy: bool = False) -> None:
        """Wait until the guest's shell answers.

        Args:
            deadline: When to give up.
            copy: Whether the guest is a clone; then it gets random bytes of its own.

        Raises:
            VmdebugError: see `begin`.
        """
        way = self.wait(deadline)
        if isinstance(way, AgentShell):
            way.greet(deadline)  # the agent writes the nonce of the session to /dev/urandom
            return
        from vmdebug.channel.serial.serial_shell import SerialShell  # noqa: PLC0415 - imports pexpect only when needed

        write_random = f"echo {os.urandom(SEED_BYTES).hex()} >/dev/urandom" if copy else ""
        if isinstance(way, SerialShell):
            way.wait_ready(deadline, before=write_random)
        elif write_random:
            self.run(write_random, streams=Streams(), deadline=deadline)

    def answers(self, deadline: Deadline) -> bool:
        """Return whether an agent in the guest answers by a deadline; type nothing on its console."""
        watch = self._watch()
        try:
            with Search(self._ways, watch, math.inf) as search:
                self._remember(search.result(deadline, self._check))
        except DeadlineError:
            return False
        finally:
            watch.close()
        return True

    def forget(self) -> None:
        """Discard the channel, if it is the serial line, after the guest was restored to an earlier state."""
        if self._found is not None and self._found.kind == "serial":
            self._found = self._shell = None

    def close(self) -> None:
        """End the commands whose results were not read."""
        running = self._running + self._abandoned
        self._running, self._abandoned = [], []
        for job in running:
            job.cancel()

    def _check(self) -> None:
        """Raise if the guest does not run.

        QEMU's answer counts only without a debugger that runs the guest: the guest is paused at each hit of a
        trace, which continues by itself. `Watch` notices the stops that do not.
        """
        if self.debugger is None or not self.debugger.runs():
            self._stopped()

    def _watch(self) -> Watch:
        return Watch(self._ways.log, self.debugger, cause=self.cause)

    def _shell_by(self, kind: Kind) -> Shell:
        ways = self._ways
        match kind:
            case "agent":
                return AgentShell(ways.ports, watch=self._watch, silent=self._check)
            case "agent-uart":
                silent, window = self._check, UART_WINDOW
                return AgentShell([ways.uart], watch=self._watch, silent=silent, window=window)
            case "guest-agent":
                from vmdebug.channel.guest_agent import GuestAgentShell  # noqa: PLC0415 - only imported when needed

                return GuestAgentShell(ways.guest_agent, watch=self._watch)
            case "serial":
                from vmdebug.channel.serial.serial_shell import SerialShell  # noqa: PLC0415 - imports pexpect only when needed

                return SerialShell(ways.console, ways.log, owner=self)

    def _remember(self, found: Found) -> None:
        self._found = found
        found.write(self._ways.memory)

    def _find(self, deadline: Deadline, *, patience: float) -> Found:
        watch = self._watch()
        try:
            with Search(self._ways, watch, patience) as search:
                return search.result(deadline, self._check)
        finally:
            watch.close()
