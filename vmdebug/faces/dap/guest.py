"""The VM of a session: started or found, restarted, and left as it was found."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from vmdebug import restart, sources, vm
from vmdebug.channel.log import death
from vmdebug.deadline import BUILD_SECONDS, LAUNCH_SECONDS, Deadline
from vmdebug.debugger import clients
from vmdebug.debugger.interactive import Attachment
from vmdebug.debugger.ownership import VmOwner
from vmdebug.errors import UsageError, VmdebugError
from vmdebug.faces.dap.arguments import Asked, Session
from vmdebug.guest import Kernel, LaunchSpec, ReplayMachine
from vmdebug.paths import absolute
from vmdebug.progress import Report
from vmdebug.sources import tree_build
from vmdebug.vm.launching import Start

STOP_SECONDS = 30.0
"""How long QEMU may take to end."""

_STOPPED = ("halted", "paused", "panicked", "failed")


class Renewal(NamedTuple):
    """How a VM is started again.

    Args:
        spec: What is started.
        start: How.
    """

    spec: LaunchSpec
    start: Start


class DebuggedVm:
    """The VM of a session. Made by `launch` and `find`.

    Args:
        machine: The VM.
        launched: Whether the session has started it, so that it ends with the session.
        status: Its status when the session began.
        halt: Whether the client wants to see the guest stopped first.
    """

    def __init__(self, machine: vm.Vm, *, launched: bool, status: str, halt: bool) -> None:
        self.machine = machine
        self.launched = launched
        self.halt = halt
        self._resume = launched or status not in _STOPPED
        self._owner: VmOwner | None = None

    @classmethod
    def launch(cls, asked: Asked, report: Report) -> Self:
        """Start a VM, halted, that ends with this process.

        Raises:
            VmdebugError: the guest cannot be found, built or started.
        """
        options = asked.options()
        deadline = Deadline.after(BUILD_SECONDS)
        if asked.session.build:
            tree, needs = tree_build.tree_of(options), tree_build.needs_of(options)
            tree_build.build(tree, needs=needs, report=report, deadline=deadline)
        halted = msgspec.structs.replace(options, halt=True)
        spec = sources.resolve(halted, report=report, deadline=deadline)
        machine = vm.launch(spec, bound=True, report=report, exact_name=options.name is not None)
        return cls(machine, launched=True, status="halted", halt=options.halt)

    @classmethod
    def find(cls, session: Session) -> Self:
        """Find the running VM to attach to.

        Raises:
            UsageError: there is no such VM, or it has exited; or several run and none is named.
        """
        machine = vm.find(session.vm)
        status = machine.status()
        if status == "exited":
            raise UsageError(
                f"attach needs a VM that runs, and {machine.name} has exited",
                hint='start it again: vmdebug start; or use "request": "launch"',
            )
        return cls(machine, launched=False, status=status, halt=status in _STOPPED)

    @property
    def stays_stopped(self) -> bool:
        """Whether the guest is left stopped."""
        return not self._resume

    @property
    def replays(self) -> bool:
        """Whether the VM replays a recording, so that it can go back in time."""
        return isinstance(self.machine.state.spec.machine, ReplayMachine)

    def claim(self) -> int:
        """Claim the VM's gdbstub until `release`; return the descriptor, for GDB to inherit.

        Raises:
            StateError: a GDB, or another program, is connected.
        """
        machine = self.machine
        with contextlib.ExitStack() as undo:
            owner = undo.enter_context(VmOwner.claim(machine.rundir.attach_lock, machine.name))
            clients.check_free(machine.state.gdb, machine.name)
            undo.pop_all()
        self._owner = owner
        return owner.descriptor

    def release(self) -> None:
        """Give up the claim."""
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    def kernel(self, session: Session) -> Kernel:
        """Return the guest's kernel, with the sources that the client names if none are known."""
        kernel = self.machine.state.spec.kernel
        if session.source is None:
            return kernel
        source = absolute(session.source)
        if not source.is_dir():
            raise UsageError(
                f'"source": {source} is not a directory', hint="give the top of the kernel's source tree"
            )
        return kernel if kernel.source is not None else msgspec.structs.replace(kernel, source=source)

    def attachment(self, session: Session, program: tuple[str, ...], lock: int) -> Attachment:
        """Return how GDB attaches to it.

        Args:
            session: The arguments of the session.
            program: GDB.
            lock: The descriptor of the claim.
        """
        state = self.machine.state
        return Attachment(
            endpoint=state.gdb,
            kernel=self.kernel(session),
            accel=state.accel,
            kaslr="nokaslr" not in state.spec.parameters,
            program=program,
            until=session.until,
            timeout=session.timeout,
            force=session.force or (state.spec.asked is not None and state.spec.asked.force),
            panicked=death.panicked(self.machine.rundir.console_log),
            lock=lock,
        )

    def renewed(self, report: Report) -> Renewal:
        """Return how the VM is started again, halted, with the present build of its kernel; it keeps running.

        Raises:
            VmdebugError: see `vmdebug.restart.resolve` and `prepare`.
        """
        deadline = Deadline.after(BUILD_SECONDS)
        spec = restart.resolve(self.machine, halt=True, report=report, deadline=deadline)
        start = restart.prepare(self.machine, spec, report=report, launch_seconds=LAUNCH_SECONDS)
        return Renewal(spec, start)

    def restart(self, renewal: Renewal, report: Report) -> None:
        """Start the VM again. GDB must have left it.

        Raises:
            VmdebugError: see `vmdebug.restart.replace`.
        """
        self.release()
        self.machine = restart.replace(
            self.machine, renewal.spec, renewal.start, report=report, launch_seconds=LAUNCH_SECONDS
        )

    def pause(self) -> None:
        """Stop the guest; GDB reports it as a signal."""
        self.machine.pause()

    def resumes(self, *, suspend: bool) -> bool:
        """Return whether the guest runs on when GDB leaves it.

        Args:
            suspend: Whether the client wants it to stay stopped.
        """
        if suspend or not self._resume:
            return False
        with contextlib.suppress(VmdebugError):
            return self.machine.status() != "panicked"
        return True

    def keep(self) -> None:
        """Let a VM that was started here outlive this process."""
        self.machine.keep()

    def end(self) -> None:
        """End the VM and remove its directory.

        Raises:
            HostError: it does not end.
        """
        self.machine.stop(timeout=STOP_SECONDS)

    def shown_tree(self, session: Session) -> Path:
        """Return the tree that the client shows: `source`, or the present directory."""
        return absolute(session.source) if session.source is not None else Path(os.environ.get("PWD", "."))
