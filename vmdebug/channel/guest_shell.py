"""The shell of a guest, by the best way that answers; that is found out once and remembered beside the VM."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vmdebug.channel import shell
from vmdebug.channel.agent.shell import AgentShell
from vmdebug.channel.finding import PROMPT_SECONDS, Search
from vmdebug.channel.found import Found, Kind
from vmdebug.channel.port import Ways
from vmdebug.channel.shell import ExecResult, Job, Shell, Streams
from vmdebug.channel.watch import Debugger, Watch
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, StateError

if TYPE_CHECKING:
    from vmdebug.channel.serial.console import Console

SEED_BYTES = 16


class GuestShell:
    """Runs commands in a guest.

    Args:
        ways: Where the ways into it are.
        check: Raises StateError where the guest does not run.
        cause: Returns how the guest died; "" while it lives.
    """

    def __init__(
        self, ways: Ways, *, check: Callable[[], None], cause: Callable[[], str] = lambda: ""
    ) -> None:
        self.console: Console | None = None
        """The console, where this process has it open: commands over the serial line go through it."""
        self.debugger: Debugger | None = None
        """The debugger of this process that may stop the guest."""
        self._ways = ways
        self._check = check
        self._cause = cause
        self._found: Found | None = None
        self._shell: Shell | None = None
        self._running: list[Job] = []
        self._deserted: list[
            Job
        ] = []  # `run` was interrupted by a stop of the guest: nobody asks for their results

    @property
    def found(self) -> Found | None:
        """The way that answered, as far as anybody has asked."""
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
            deadline: Until when it has to be started.
            check: Whether an exit status other than 0 is an error, for its result.

        Raises:
            UsageError: the command is empty or holds a NUL.
            StateError: the guest does not run; or somebody else has the only way into it.
            VmError: the guest has no shell, or does not start it.
            GuestDiedError: the guest died.
            DeadlineError: no shell answered.
        """
        line = shell.command_line(command)
        self._deserted = [each for each in self._deserted if not each.settle()]
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
            self._deserted.append(job)
            raise
        finally:
            self._running.remove(job)

    def wait(self, deadline: Deadline) -> Shell:
        """Return the guest's shell once it answers.

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
        """Return once the guest's shell has answered.

        Args:
            deadline: Until when.
            copy: Whether the guest goes on where another stood: then it gets random numbers of its own.

        Raises:
            VmdebugError: see `begin`.
        """
        way = self.wait(deadline)
        if isinstance(way, AgentShell):
            way.greet(deadline)  # the agent stirs what it is greeted with
            return
        from vmdebug.channel.serial.serial_shell import SerialShell  # noqa: PLC0415 - pexpect, where it is used

        stir = f"echo {os.urandom(SEED_BYTES).hex()} >/dev/urandom" if copy else ""
        if isinstance(way, SerialShell):
            way.wait_ready(deadline, before=stir)
        elif stir:
            self.run(stir, streams=Streams(), deadline=deadline)

    def answers(self, deadline: Deadline) -> bool:
        """Say whether an agent answers in the guest by a deadline; nothing is typed on its console."""
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
        """Take note that the guest is an earlier one: what was found may not be there yet."""
        if self._found is not None and self._found.kind == "serial":
            self._found = self._shell = None

    def close(self) -> None:
        """End the commands whose results nobody has asked for."""
        running = self._running + self._deserted
        self._running, self._deserted = [], []
        for job in running:
            job.cancel()

    def _watch(self) -> Watch:
        return Watch(self._ways.log, self.debugger, cause=self._cause)

    def _shell_by(self, kind: Kind) -> Shell:
        ways = self._ways
        match kind:
            case "agent":
                return AgentShell(ways.ports, watch=self._watch, silent=self._check)
            case "agent-uart":
                return AgentShell([ways.uart], watch=self._watch, silent=self._check)
            case "guest-agent":
                from vmdebug.channel.guest_agent import GuestAgentShell  # noqa: PLC0415 - where it is used

                return GuestAgentShell(ways.guest_agent, watch=self._watch)
            case "serial":
                from vmdebug.channel.serial.serial_shell import SerialShell  # noqa: PLC0415 - pexpect, where it is used

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
