"""A started VM: its status, QMP, snapshots, commands and end."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from vmdebug import attach_lock, locks
from vmdebug.channel.files.copies import Copies
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, VmdebugError
from vmdebug.guest import ReplayMachine
from vmdebug.vm import children, directory_use, guest_status, segment, state
from vmdebug.vm.guardian import Guardian
from vmdebug.vm.guest_status import Status
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import State

if TYPE_CHECKING:
    from vmdebug.channel.guest_shell import GuestShell
    from vmdebug.channel.serial.console import Console
    from vmdebug.channel.shell import ExecResult
    from vmdebug.vm.qmp import Qmp
    from vmdebug.vm.snapshot import Snapshot

EndedBy = Literal["gone", "quit", "SIGTERM", "SIGKILL"]
"""How a VM was ended. "gone": it had already ended; "quit": by the QMP command."""

QMP_SECONDS = 10.0
"""How long a short QMP command may take, including the wait for other commands."""

SNAPSHOT_SECONDS = 60.0
"""How long one snapshot may take; 0.1 s is usual for 256 MB."""

QUIT_SECONDS = 5.0
"""How long QEMU may take to end by `quit`, and then by SIGTERM."""


class Vm(Copies):
    """A VM, returned by `launch` and `find`. As a context manager it ends a VM that is bound to this process.

    Args:
        rundir: Its run directory.
        state: Its recorded state.
        guardian: Its guardian, if this process is its owner.
        ended: Its last status, if its directory is already removed.
    """

    def __init__(
        self,
        rundir: RunDir,
        state: State,
        *,
        guardian: Guardian | None = None,
        ended: Status | None = None,
    ) -> None:
        self.rundir = rundir
        self.state = state
        self._guardian = guardian
        self._ended = ended
        self._shell: GuestShell | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._guardian is not None:
            self.stop()

    @property
    def name(self) -> str:
        """Its name."""
        return self.state.name

    @property
    def address(self) -> str:
        """The guest's IPv4 address: on a segment if it is on one; "" if it has none, or a DHCP server's."""
        nics = sorted(self.state.spec.nics, key=lambda nic: nic.kind != "segment")
        return next((nic.ip for nic in nics if nic.ip), "")

    @property
    def bound(self) -> bool:
        """Whether it ends with this process."""
        return self._guardian is not None

    def status(self, *, timeout: float = QMP_SECONDS) -> Status:
        """Return its present status.

        Args:
            timeout: Seconds to wait for QEMU's answer.

        Raises:
            DeadlineError: QEMU does not answer.
        """
        if self._ended is not None:
            return self._ended
        if not self.state.qemu.alive():
            return guest_status.after_end(self.rundir.console_log)
        try:
            run_state = self.qmp("query-status", timeout=timeout)["status"]
        except GuestDiedError:
            return guest_status.after_end(self.rundir.console_log)
        return guest_status.of_run_state(run_state, self.rundir.console_log)

    def facts(self, status: Status | None = None, *, timeout: float = QMP_SECONDS) -> dict[str, Any]:
        """Return the object of `status --json`.

        Args:
            status: Its status, if the caller knows it; None: ask QEMU.
            timeout: Seconds to wait for QEMU's answer.

        Raises:
            DeadlineError: QEMU does not answer.
        """
        return guest_status.facts(self.state, self.rundir, status or self.status(timeout=timeout))

    def qmp(self, command: str, /, *, timeout: float = QMP_SECONDS, **arguments: object) -> Any:
        """Execute a QMP command and return its result.

        Args:
            command: Its name in the QMP reference.
            timeout: Seconds to wait for the result, including the wait for other commands.
            **arguments: Its arguments; write those with dashes as `**{"node-name": …}`.

        Raises:
            QmpError: QEMU refused it.
            GuestDiedError: QEMU has ended.
            DeadlineError: QEMU did not answer, or other commands kept it busy.
        """
        with self.connected(timeout=timeout) as qmp:
            return qmp.execute(command, arguments or None)

    @contextlib.contextmanager
    def connected(self, *, timeout: float = QMP_SECONDS) -> Iterator[Qmp]:
        """Hold vmdebug's QMP connection for several commands and the events that they cause.

        Meanwhile other commands of vmdebug to this VM wait, in this process and in others, so keep the block
        short. A program that stays connected can use the socket `facts()["qmp"]`.

        Args:
            timeout: Seconds for the whole block, including the wait for other commands.

        Raises:
            GuestDiedError: QEMU has ended.
            DeadlineError: other commands kept QEMU busy.
        """
        from vmdebug.vm import qmp  # noqa: PLC0415 - see its docstring

        deadline = Deadline.after(timeout)
        what = f"other commands to QEMU of {self.name} to end"
        try:
            with (
                locks.held(self.rundir.control_lock, what=what, deadline=deadline),
                qmp.connect(self.rundir.control, process=self.state.qemu, deadline=deadline) as connection,
            ):
                yield connection
        except (FileNotFoundError, qmp.NoListenerError) as error:
            raise GuestDiedError(f"QEMU of {self.name} has ended", hint="start it again") from error

    def console(self) -> Console:
        """Return a client of the serial line; enter it with `with`."""
        # pexpect is only imported when needed.
        from vmdebug.channel.serial.console import Console  # noqa: PLC0415
        from vmdebug.channel.serial.line import SerialLine  # noqa: PLC0415

        run = self.rundir
        line = SerialLine(run.console, run.console_lock, run.console_log, cause=self.cause_of_death)
        return Console(line)

    @property
    def shell(self) -> GuestShell:
        """The guest's shell, through the best way into the guest."""
        if self._shell is None:
            from vmdebug.channel.guest_shell import GuestShell  # noqa: PLC0415 - `status` needs none

            self._shell = GuestShell(self.rundir.ways, check=self.check_running, cause=self.cause_of_death)
        return self._shell

    @shell.setter
    def shell(self, shell: GuestShell) -> None:
        self._shell = shell

    def check_running(self, call: str = "exec") -> None:
        """Raise if the guest does not run, and will not by itself.

        Args:
            call: The call that needs it, for the error.

        Raises:
            StateError: the guest does not run; the hint says how to set it running.
        """
        if isinstance(self.state.spec.machine, ReplayMachine):
            raise StateError(
                f"{call} needs a guest that takes input, and {self.name} replays a recording",
                hint=f"it only does what was recorded; look at it: vmdebug attach {self.name}",
            )
        status = self.status()
        waits = status == "paused" and attach_lock.program(self.rundir.attach_lock)
        if status != "running" and not waits:
            raise StateError(
                f"{call} needs a running guest, and {self.name} is {status}",
                hint=guest_status.how_to_run(status, self.name),
            )

    def check_alive(self, call: str) -> None:
        """Raise if the guest has died.

        Args:
            call: The call that needs it, for the error.

        Raises:
            StateError: the guest has died.
        """
        if cause := self.cause_of_death():
            raise StateError(
                f"{call} needs a live guest, and {self.name} has died: {cause}",
                hint=f"print its log: vmdebug dmesg {self.name}; start it again: vmdebug restart {self.name}",
            )

    def cause_of_death(self) -> str:
        """Return how the guest died; "" if it lives, or QEMU does not answer."""
        try:
            status = self.status()
        except DeadlineError:
            return ""
        if status != "running":
            ended = guest_status.end_of_qemu(
                self.state, children.status(self.state.pid), self.rundir.qemu_log
            )
            return ended if status == "exited" else guest_status.cause_of_death(status)
        from vmdebug.vm import hidden_death  # noqa: PLC0415 - only after some silence of the guest

        return hidden_death.cause(self)

    def snapshot(self, tag: str, *, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Take a snapshot. Afterwards a running guest continues, and a stopped one stays stopped.

        Args:
            tag: The snapshot's name.
            timeout: Seconds to wait.

        Raises:
            StateError: the guest is recorded, or replays a recording.
            VmdebugError: see `vmdebug.vm.snapshot.save`.
            DeadlineError: QEMU did not finish it.
        """
        from vmdebug.vm import snapshot  # noqa: PLC0415 - only imported when needed

        self._check_snapshots()
        with self.connected(timeout=timeout) as qmp:
            snapshot.save(qmp, tag, vm=self.name)

    def restore(self, tag: str, *, run: bool = True, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Load a snapshot. While a GDB is attached use `DebugSession.restore`.

        Args:
            tag: The snapshot's name.
            run: Whether to set the guest running if it has panicked since.
            timeout: Seconds to wait.

        Raises:
            StateError: the guest is recorded, or replays a recording.
            VmdebugError: see `vmdebug.vm.snapshot.load`.
            DeadlineError: QEMU did not finish it.
        """
        from vmdebug.vm import snapshot  # noqa: PLC0415 - only imported when needed

        self._check_snapshots()
        with self.connected(timeout=timeout) as qmp:
            snapshot.load(qmp, tag, vm=self.name, console_log=self.rundir.console_log, run=run)

    def snapshots(self, *, timeout: float = QMP_SECONDS) -> tuple[Snapshot, ...]:
        """Return the VM's snapshots, oldest first.

        Args:
            timeout: Seconds to wait for QEMU's answer.

        Raises:
            GuestDiedError: QEMU has ended.
            DeadlineError: QEMU did not answer.
        """
        from vmdebug.vm import snapshot  # noqa: PLC0415 - only imported when needed

        with self.connected(timeout=timeout) as qmp:
            return snapshot.every(qmp)

    def delete_snapshot(self, tag: str, *, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Delete a snapshot.

        Args:
            tag: The snapshot's name.
            timeout: Seconds to wait.

        Raises:
            StateError: the guest is recorded, or replays a recording.
            VmdebugError: see `vmdebug.vm.snapshot.delete`.
            DeadlineError: QEMU did not finish it.
        """
        from vmdebug.vm import snapshot  # noqa: PLC0415 - only imported when needed

        self._check_snapshots()
        with self.connected(timeout=timeout) as qmp:
            snapshot.delete(qmp, tag, vm=self.name)

    def _check_snapshots(self) -> None:
        """Raise if a snapshot would break a recording; since 10.1, QEMU aborts if it deletes one there."""
        spec = self.state.spec
        if isinstance(spec.machine, ReplayMachine):
            raise StateError(
                f"{self.name} replays a recording, and takes its snapshots itself",
                hint=f"it can go to every position: vmd-goto in `vmdebug attach {self.name}`",
            )
        if spec.record is not None:
            raise StateError(
                f"{self.name} is recorded, and a recording cannot go back to a snapshot",
                hint=f"its replay can go to every position: vmdebug replay {spec.record}",
            )

    def pause(self, *, timeout: float = QMP_SECONDS) -> None:
        """Pause the guest; an attached GDB reports a SIGINT stop.

        Args:
            timeout: Seconds to wait for QEMU's answer.

        Raises:
            GuestDiedError: QEMU has ended.
            DeadlineError: QEMU did not answer.
        """
        self.qmp("stop", timeout=timeout)

    def resume(self, *, timeout: float = QMP_SECONDS) -> None:
        """Set the guest running. Do not call it while a GDB is attached: GDB would lose packets.

        Args:
            timeout: Seconds to wait for QEMU's answer.

        Raises:
            GuestDiedError: QEMU has ended.
            DeadlineError: QEMU did not answer.
        """
        self.qmp("cont", timeout=timeout)

    def wait(self, *, timeout: float) -> None:
        """Wait until QEMU has ended.

        Args:
            timeout: Seconds to wait.

        Raises:
            DeadlineError: QEMU still runs.
        """
        if not self.state.qemu.wait(timeout):
            raise Deadline.after(timeout).error(f"QEMU of {self.name} to end")
        children.reap()

    def exec(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes | None = None,
        timeout: float = 60.0,
        check: bool = False,
    ) -> ExecResult:
        """Run a command in the shell of the guest, which must be running.

        Args:
            command: A line for the shell, or an argv.
            stdin: Its standard input; None: /dev/null.
            timeout: Seconds to wait, including the rest of a boot.
            check: Whether to raise if the exit status is not 0.

        Raises:
            StateError: GDB has stopped the guest; or the serial line is the only way into the guest, and
                another client uses it.
            VmError: the command failed and `check` is set.
            GuestDiedError: the guest panicked or exited.
            DeadlineError: the guest's shell or the command took too long.
        """
        from vmdebug.channel.shell import Streams, input_of  # noqa: PLC0415 - only imported when needed

        streams = Streams(stdin=input_of(stdin))
        return self.shell.run(command, streams=streams, deadline=Deadline.after(timeout), check=check)

    def _copying_shell(self, call: str) -> GuestShell:  # noqa: ARG002 - the shell itself says why it cannot
        return self.shell

    def keep(self) -> None:
        """Keep the VM after this process ends, like a VM of `vmdebug start`.

        Raises:
            HostError: its directory cannot be written.
        """
        if self._guardian is None:
            return
        kept = msgspec.structs.replace(self.state, owner=None)
        # Write the state first: if this process is killed in between, the guardian ends the VM.
        state.write(self.rundir.state, kept)
        self.state = kept
        self._guardian.release()
        self._guardian = None

    def stop(self, *, force: bool = False, timeout: float = 4 * QUIT_SECONDS) -> EndedBy:
        """End the VM and remove its directory.

        Args:
            force: Whether to send SIGKILL at once.
            timeout: Seconds to wait for QEMU to end by `quit` or SIGTERM, before SIGKILL.

        Returns:
            How it was ended.

        Raises:
            HostError: it does not end after SIGKILL, or its directory cannot be removed.
        """
        ended_by = self._end(force=force, deadline=Deadline.after(timeout))
        directory_use.kill(self.state.qemu, self.state.leader)
        if self._shell is not None:
            self._shell.close()
        if self._guardian is not None:
            self._guardian.release()
            self._guardian = None
        self._ended = self._ended or guest_status.after_end(self.rundir.console_log)
        directory_use.discard(self.rundir, self.state)
        segment.settle(self.state.spec.nics)
        children.reap()
        return ended_by

    def _end(self, *, force: bool, deadline: Deadline) -> EndedBy:
        """End QEMU by `quit`, then by SIGTERM; return "SIGKILL" if neither ends it."""
        qemu = self.state.qemu
        if not qemu.alive():
            return "gone"
        if force:
            return "SIGKILL"
        until = deadline.at_most(QUIT_SECONDS)
        with contextlib.suppress(VmdebugError):
            self.qmp("quit", timeout=until.left("QEMU to quit"))
            if qemu.wait(until.left("QEMU to quit")):
                return "quit"
        until = deadline.at_most(QUIT_SECONDS)
        qemu.signal(signal.SIGTERM)
        with contextlib.suppress(DeadlineError):
            if qemu.wait(until.left("QEMU to end by SIGTERM")):
                return "SIGTERM"
        return "SIGKILL"
