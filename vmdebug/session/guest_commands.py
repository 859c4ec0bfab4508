"""`exec` of a session, and its other ways into a guest that runs: copies, ssh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from vmdebug import ssh
from vmdebug.channel.files.copies import Copies
from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.shell import ExecResult, Job, Streams, input_of
from vmdebug.deadline import Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import StateError
from vmdebug.ssh import SSH_SECONDS
from vmdebug.vm import Vm


class GuestCommands(Copies):
    """Commands in a session's guest, which must run."""

    vm: Vm

    _gdb: Gdb | None

    @overload
    def exec(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes | None = ...,
        timeout: float = ...,
        check: bool = ...,
        wait: Literal[True] = ...,
    ) -> ExecResult: ...

    @overload
    def exec(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes | None = ...,
        timeout: float = ...,
        check: bool = ...,
        wait: Literal[False],
    ) -> Job: ...

    def exec(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes | None = None,
        timeout: float = 60.0,
        check: bool = False,
        wait: bool = True,
    ) -> ExecResult | Job:
        """Run a command in the guest's shell.

        Args:
            command: A line for the shell, or an argv.
            stdin: Its standard input; None: /dev/null.
            timeout: Seconds to wait, including the rest of a boot.
            check: Whether to raise if the exit status is not 0.
            wait: Whether to wait for its end. If not, return a `Job` at once; `Job.result` waits. Use this to
                examine a breakpoint that the command hits.

        Raises:
            StateError: the guest does not run, or a breakpoint stops it. `gdb.wait_stop` returns that stop,
                and the command continues when the guest does.
            VmError: the command failed and `check` is set.
            GuestDiedError: the guest panicked or exited.
            DeadlineError: the guest's shell or the command took too long.
        """
        self._needs_running("exec")
        streams = Streams(stdin=input_of(stdin))
        deadline = Deadline.after(timeout)
        if wait:
            return self.vm.shell.run(command, streams=streams, deadline=deadline, check=check)
        return self.vm.shell.begin(command, streams=streams, deadline=deadline, check=check)

    def _copying_shell(self, call: str) -> GuestShell:
        self._needs_running(call)
        return self.vm.shell

    def ssh_config(self, *, timeout: float = SSH_SECONDS) -> Path:
        """Prepare the guest for ssh, and return a configuration: `ssh -F PATH NAME`, also for scp and rsync.

        Args:
            timeout: Seconds to wait, including the rest of a boot.

        Raises:
            StateError: GDB has stopped the guest.
            VmdebugError: see `vmdebug.ssh.configure`.
        """
        self._needs_running("ssh_config")
        return ssh.configure(self.vm, deadline=Deadline.after(timeout))

    def check_running(self, call: str) -> None:
        """Raise if the guest does not run.

        Args:
            call: The call that needs it, for the error.

        Raises:
            StateError: the guest does not run; the hint says how to set it running.
        """
        self._needs_running(call)
        self.vm.check_running(call)

    def _needs_running(self, call: str) -> None:
        """Raise if this session's GDB has stopped the guest; with another GDB, no answer comes."""
        if self._gdb is not None and self._gdb.stopped:
            raise StateError(
                f"{call} needs a running guest, and GDB has stopped it",
                hint="set it running: session.gdb.cont(wait=False)",
            )
