"""A VM that was started: its status, QMP, snapshots, and how it ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from vmdebug import locks
from vmdebug.channel.found import Found
from vmdebug.channel.log import death
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GuestDiedError, StateError, VmdebugError
from vmdebug.vm import children, claims, state
from vmdebug.vm.guardian import Guardian
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import State

if TYPE_CHECKING:
    from vmdebug.channel.guest_shell import GuestShell
    from vmdebug.channel.serial.console import Console
    from vmdebug.channel.shell import ExecResult
    from vmdebug.vm.qmp import Qmp
    from vmdebug.vm.snapshot import Snapshot

Status = Literal["halted", "running", "paused", "panicked", "failed", "exited"]
"""halted: stopped at the reset vector. paused: stopped elsewhere, by GDB or QEMU. failed: QEMU cannot run the
guest any more, as where KVM fails. exited: QEMU has ended."""

EndedBy = Literal["gone", "quit", "SIGTERM", "SIGKILL"]
"""What ended a VM. "gone": it had ended before; "quit": QMP's command."""

QMP_SECONDS = 10.0
"""How long a short QMP command may take, the wait for other commands included."""

SNAPSHOT_SECONDS = 60.0
"""How long one snapshot may take; 0.1 s is usual for 256 MB."""

QUIT_SECONDS = 5.0
"""How long QEMU may take over each ended_by of its end before the next, harder one."""

_RESUME = {
    "halted": "let it go: vmdebug attach {name} --batch; in a script: session.gdb.cont(wait=False)",
    "paused": "continue or quit the GDB that holds it; if none does: vmdebug attach {name} --batch",
}
"""How a guest that does not run is set running, by its status."""

_DEATHS: dict[str, str] = {
    "panicked": "the kernel panicked",
    "failed": "QEMU cannot run it any more: its state is internal-error",
    "exited": "QEMU has ended",
}
"""How a guest died, by its status."""

_RUNSTATES: dict[str, Status] = {
    "prelaunch": "halted",
    "running": "running",
    "guest-panicked": "panicked",
    "internal-error": "failed",
    "shutdown": "exited",
}


class Vm:
    """A VM, returned by `launch` and `find`. As a context manager it ends a VM that is bound to this process.

    Args:
        rundir: Its run directory.
        state: What was started, and how.
        guardian: Its guardian, if this process is its owner.
        ended: Its last status, if its directory is removed already.
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
    def bound(self) -> bool:
        """Whether it ends with this process."""
        return self._guardian is not None

    def status(self) -> Status:
        """Return its present status.

        Raises:
            DeadlineError: QEMU does not answer.
        """
        if self._ended is not None:
            return self._ended
        if not self.state.qemu.alive():
            return self._end_status()
        try:
            runstate = self.qmp("query-status")["status"]
        except GuestDiedError:
            return self._end_status()
        status = _RUNSTATES.get(runstate, "paused")
        # A kernel without a pvpanic driver reports its panic on the console only, and then loops. GDB
        # may have stopped it there, or before the driver was called.
        told = status in ("running", "paused") and death.panicked(self.rundir.console_log)
        return "panicked" if told else status

    def facts(self, status: Status | None = None) -> dict[str, Any]:
        """Return the object of `status --json`.

        Args:
            status: Its status, if that is known; otherwise QEMU is asked.

        Raises:
            DeadlineError: QEMU does not answer.
        """
        spec = self.state.spec
        kernel = spec.kernel
        found = Found.read(self.rundir.ways.memory)
        return {
            "name": self.name,
            "status": status or self.status(),
            "pid": self.state.pid,
            "accel": self.state.accel,
            "accel_reason": self.state.reason,
            "guest": spec.guest,
            "kernel": str(kernel.image),
            "release": kernel.release,
            "vmlinux": None if kernel.vmlinux is None else str(kernel.vmlinux),
            "build_id": kernel.build_id,
            "gdb": self.state.gdb,
            "qmp": str(self.rundir.qmp),
            "console": str(self.rundir.console),
            "console_log": str(self.rundir.console_log),
            "run_directory": str(self.rundir.path),
            "owner": None if self.state.owner is None else self.state.owner.pid,
            "started_at": self.state.started_at,
            "clone_of": self.state.clone_of or None,
            "shell": None if found is None else {"way": found.kind, "reason": found.reason},
        }

    def qmp(self, command: str, /, *, timeout: float = QMP_SECONDS, **arguments: object) -> Any:
        """Execute a QMP command and return what it returns.

        Args:
            command: Its name in the QMP reference.
            timeout: Seconds until the answer has to be there, the wait for other commands included.
            **arguments: Its arguments; `**{"node-name": …}` where they have dashes.

        Raises:
            QmpError: QEMU refused it.
            GuestDiedError: QEMU has ended.
            DeadlineError: no answer came, or other commands kept QEMU busy.
        """
        with self.connected(timeout=timeout) as qmp:
            return qmp.execute(command, arguments or None)

    @contextlib.contextmanager
    def connected(self, *, timeout: float = QMP_SECONDS) -> Iterator[Qmp]:
        """Hold vmdebug's QMP connection for several commands and the events that they cause.

        Other commands of vmdebug to this VM wait meanwhile, in this process and in others: keep it short.
        A program that stays connected has a socket of its own, `facts()["qmp"]`.

        Args:
            timeout: Seconds for all of it, the wait for other commands included.

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
        """Return the serial line's client, to be entered by `with`."""
        from vmdebug.channel.serial.console import Console  # noqa: PLC0415 - so that pexpect is imported where it is used

        return Console(self.rundir.console, self.rundir.console_lock, self.rundir.console_log)

    @property
    def shell(self) -> GuestShell:
        """The guest's shell, by the best way into it."""
        if self._shell is None:
            from vmdebug.channel.guest_shell import GuestShell  # noqa: PLC0415 - `status` needs none

            self._shell = GuestShell(self.rundir.ways, check=self.check_running, cause=self.cause_of_death)
        return self._shell

    def check_running(self, call: str = "exec") -> None:
        """Raise where the guest does not run.

        Args:
            call: What needs it, for the error.

        Raises:
            StateError: it does not; the hint says how it is set running.
        """
        status = self.status()
        if status != "running":
            raise StateError(
                f"{call} needs a running guest, and {self.name} is {status}",
                hint=_RESUME.get(status, "start a new one").format(name=self.name),
            )

    def check_alive(self, call: str) -> None:
        """Raise where the guest has died.

        Args:
            call: What needs it, for the error.

        Raises:
            StateError: it has.
        """
        if cause := self.cause_of_death():
            raise StateError(
                f"{call} needs a guest that lives, and {self.name} does not: {cause}",
                hint=f"its last words: vmdebug dmesg {self.name}; a new start: vmdebug restart {self.name}",
            )

    def cause_of_death(self) -> str:
        """Return how the guest died; "" while it lives, or QEMU does not say."""
        try:
            return _DEATHS.get(self.status(), "")
        except DeadlineError:
            return ""

    def snapshot(self, tag: str, *, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Take a snapshot; a running guest continues after it, a stopped one stays stopped.

        Args:
            tag: What it is called.
            timeout: Seconds until it has to be taken. What is raised: `vmdebug.vm.snapshot.save`.
        """
        from vmdebug.vm import snapshot  # noqa: PLC0415 - where it is used

        with self.connected(timeout=timeout) as qmp:
            snapshot.save(qmp, tag, vm=self.name)

    def restore(self, tag: str, *, run: bool = True, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Load a snapshot. While a GDB is attached use `DebugSession.restore`.

        Args:
            tag: Which one.
            run: Whether a guest that has panicked since is set running.
            timeout: Seconds until it has to be loaded. What is raised: `vmdebug.vm.snapshot.load`.
        """
        from vmdebug.vm import snapshot  # noqa: PLC0415 - where it is used

        with self.connected(timeout=timeout) as qmp:
            snapshot.load(qmp, tag, vm=self.name, console_log=self.rundir.console_log, run=run)

    def snapshots(self, *, timeout: float = QMP_SECONDS) -> tuple[Snapshot, ...]:
        """Return the VM's snapshots, oldest first.

        Args:
            timeout: Seconds until QEMU has to answer.

        Raises:
            GuestDiedError: QEMU has ended.
        """
        from vmdebug.vm import snapshot  # noqa: PLC0415 - where it is used

        with self.connected(timeout=timeout) as qmp:
            return snapshot.every(qmp)

    def delete_snapshot(self, tag: str, *, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Delete a snapshot.

        Args:
            tag: Which one.
            timeout: Seconds until it has to be gone. What is raised: `vmdebug.vm.snapshot.delete`.
        """
        from vmdebug.vm import snapshot  # noqa: PLC0415 - where it is used

        with self.connected(timeout=timeout) as qmp:
            snapshot.delete(qmp, tag, vm=self.name)

    def pause(self) -> None:
        """Pause the guest; an attached GDB reports a SIGINT stop.

        Raises:
            GuestDiedError: QEMU has ended.
        """
        self.qmp("stop")

    def resume(self) -> None:
        """Set the guest running. Do not use it while a GDB is attached: GDB would lose packets.

        Raises:
            GuestDiedError: QEMU has ended.
        """
        self.qmp("cont")

    def wait(self, *, timeout: float) -> None:
        """Wait until QEMU has ended.

        Args:
            timeout: Seconds to wait.

        Raises:
            DeadlineError: it still runs.
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
        """Run a command in the shell of the guest, which has to run.

        Args:
            command: A line for its shell, or an argv.
            stdin: Its standard input; None: it has none.
            timeout: Seconds for all of it, the boot included when the guest still boots.
            check: Whether an exit status other than 0 is an error.

        Raises:
            StateError: GDB holds the guest stopped; or the serial line is the only way to its shell, and
                somebody else has that.
            VmError: the command failed and `check` is set.
            GuestDiedError: the guest panicked or exited.
            DeadlineError: the guest's shell or the command took too long.
        """
        from vmdebug.channel.shell import Streams, input_of  # noqa: PLC0415 - where it is used

        streams = Streams(stdin=input_of(stdin))
        return self.shell.run(command, streams=streams, deadline=Deadline.after(timeout), check=check)

    def keep(self) -> None:
        """Make it outlive this process, as a VM of `vmdebug start` does.

        Raises:
            HostError: its directory cannot be written.
        """
        if self._guardian is None:
            return
        kept = msgspec.structs.replace(self.state, owner=None)
        # The state comes first: if this process is killed in between, the guardian ends the VM.
        state.write(self.rundir.state, kept)
        self.state = kept
        self._guardian.release()
        self._guardian = None

    def stop(self, *, force: bool = False, timeout: float = 4 * QUIT_SECONDS) -> EndedBy:
        """End it and remove its directory.

        Args:
            force: Whether to send SIGKILL at once.
            timeout: Seconds that QEMU has to end by itself or by SIGTERM; then it gets SIGKILL.

        Returns:
            What ended it.

        Raises:
            HostError: it does not end on SIGKILL, or its directory cannot be removed.
        """
        ended_by = self._end(force=force, deadline=Deadline.after(timeout))
        claims.kill(self.state.qemu, self.state.leader)
        if self._shell is not None:
            self._shell.close()
        if self._guardian is not None:
            self._guardian.release()
            self._guardian = None
        self._ended = self._ended or self._end_status()
        claims.discard(self.rundir, self.state)
        children.reap()
        return ended_by

    def _end(self, *, force: bool, deadline: Deadline) -> EndedBy:
        """End QEMU by `quit`, then by SIGTERM; return "SIGKILL" if only that is left."""
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

    def _end_status(self) -> Status:
        return "panicked" if death.panicked(self.rundir.console_log) else "exited"
