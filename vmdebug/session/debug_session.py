"""A debugging session: one VM with its console and its GDB; it controls when the guest runs.

While GDB is attached, only GDB may resume the guest: after a `cont` on QMP, GDB loses packets. So every call
that needs the guest running or stopped goes through the session. A call that is impossible in the present
state raises at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from vmdebug import attaching, replaying, restart, vm
from vmdebug.attaching import ATTACH_SECONDS
from vmdebug.channel.serial.console import Console
from vmdebug.deadline import BUILD_SECONDS, LAUNCH_SECONDS, Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.preloaded import PreloadedGdb
from vmdebug.debugger.runstate import State
from vmdebug.drgn_program.access import DrgnAccess
from vmdebug.ktests.testing import KernelTests
from vmdebug.progress import Report, silent
from vmdebug.session.guest_commands import GuestCommands
from vmdebug.session.guest_states import GuestStates
from vmdebug.session.measuring import Measuring
from vmdebug.sources import tree_build

STOP_SECONDS = 30.0
"""How long GDB, and then QEMU, may take to end with a session."""


class DebugSession(GuestCommands, GuestStates, Measuring, KernelTests, DrgnAccess):
    """A VM with its console and its GDB, each opened at its first use.

    Made by `start` and `attach`; a context manager. At its end GDB detaches, and a VM that the session
    started ends.

    Args:
        machine: The running VM.
        owned: Whether the VM ends with the session.
        force: Whether to continue with symbols from another build than the running kernel; `gdb.notes` has a
            warning.
        preloaded: A GDB that already loads the guest's symbols. The caller closes it, in case it is not used.
        attach_timeout: See the attribute.
    """

    def __init__(
        self,
        machine: vm.Vm,
        *,
        owned: bool,
        force: bool = False,
        preloaded: PreloadedGdb | None = None,
        attach_timeout: float = ATTACH_SECONDS,
    ) -> None:
        self.vm = machine
        self.attach_timeout = attach_timeout
        """Seconds that GDB may take to load the kernel's symbols and connect: at the first use of `gdb`, and
        in `restart`. Can be set."""
        self.restarted: Callable[[], None] | None = None
        """Called by `restart` once `vm` is the new VM."""
        self.tested = contextlib.nullcontext
        self._owned = owned
        self._force = force
        self._preloaded = preloaded
        self._console_held = contextlib.ExitStack()
        self._console: Console | None = None
        self._gdb: Gdb | None = None
        self._drgn = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, *, timeout: float = STOP_SECONDS) -> None:
        """Detach GDB, and end the VM if the session has started it.

        Otherwise the guest continues to run, unless it has panicked.

        Args:
            timeout: Seconds to wait for GDB, and then for QEMU, before each is ended by SIGKILL.

        Raises:
            HostError: QEMU does not end after SIGKILL, or its directory cannot be removed.
        """
        try:
            with self._console_held:
                self.detach(timeout=timeout)
            self.vm.shell.close()
        finally:
            introduced = self._console is not None
            self._console = self._drgn = None
            if introduced:
                self._connect_shell()
            if self._owned:
                self.vm.stop(timeout=timeout)

    def detach(self, *, timeout: float = STOP_SECONDS) -> None:
        """Detach GDB and end it; the next use of `gdb` attaches another one.

        The guest continues to run, unless it has panicked or is a replay.

        Args:
            timeout: Seconds to wait for GDB before it is ended by SIGKILL.
        """
        if self._gdb is None:
            return
        try:
            # After a detach the guest runs, and a guest that has panicked would reboot.
            # A replay would run to the end of its recording.
            stays = self.status == "panicked" or replaying.of(self.vm) is not None
            self._gdb.close(resume=self._owned or not stays, timeout=timeout)
        finally:
            self._gdb = None
            self._connect_shell()

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.vm.name

    @property
    def status(self) -> str:
        """`halted`, `running`, `paused`, `panicked`, `failed` or `exited`; see `Vm.status`."""
        return self.vm.status()

    @property
    def console(self) -> Console:
        """The guest's serial line. Other processes cannot use it until the session ends.

        Raises:
            StateError: another process uses it; the message has its pid.
        """
        if self._console is None:
            self._console = self._console_held.enter_context(self.vm.console())
            self._connect_shell()
        return self._console

    @property
    def gdb(self) -> Gdb:
        """The attached GDB. The first use attaches it, which stops the guest.

        If a person shares a GDB (`vmdebug attach --share`), it is that one, and the guest is not stopped.

        Raises:
            StateError: another GDB is attached; the message has its pid.
            HostError: there is no GDB on this machine.
            GdbError: GDB did not load the symbols or did not connect.
            DeadlineError: GDB took longer than `attach_timeout`.
            MismatchError: the symbols do not belong to the kernel in guest memory. If the kernel is not
                mapped yet, the call that runs the guest to that point raises it.
        """
        if self._gdb is None:
            self._gdb = self._attached(self.attach_timeout)
            self._connect_shell()
        return self._gdb

    def exchanges(self) -> str:
        """Return the last GDB/MI commands and answers of the attached GDB; "" if none is attached."""
        return "" if self._gdb is None else self._gdb.exchanges()

    @contextlib.contextmanager
    def examined(self, *, timeout: float = ATTACH_SECONDS) -> Iterator[Gdb]:
        """Stop the guest and yield its GDB; restore the previous state after the block.

        If no GDB is attached, attach one for the block.

        Args:
            timeout: Seconds to wait until GDB is attached and the guest is stopped.

        Raises:
            VmdebugError: see `gdb`.
            DeadlineError: the guest did not stop.
        """
        if self._gdb is not None:
            with self._gdb.held(timeout=timeout):
                yield self._gdb
            return
        was = self.status
        gdb = self._attached(timeout)
        try:
            with gdb.held(timeout=timeout):
                yield gdb
        finally:
            gdb.close(resume=was == "running")

    @property
    def notes(self) -> tuple[str, ...]:
        """The warnings of GDB and drgn, once they are used, such as symbols of another build."""
        by_gdb = () if self._gdb is None else tuple(self._gdb.notes)
        return by_gdb if self._drgn is None else (*by_gdb, *self._drgn.notes)

    def _connect_shell(self) -> None:
        """Set the open console and the debugger of the guest's shell."""
        line = None if self._console is None else self._console.line
        self.vm.shell.line, self.vm.shell.debugger = line, self._gdb
        if line is not None:
            line.debugger = self._gdb

    def restart(
        self,
        *,
        build: bool = False,
        jobs: int | None = None,
        report: Report = silent,
        timeout: float = LAUNCH_SECONDS,
        build_timeout: float = BUILD_SECONDS,
    ) -> None:
        """Start the VM again, with its name, its options and the present build of its kernel.

        An attached GDB stays attached: it loads the new symbols, sets its breakpoints again by name or line,
        and is stopped at the reset vector. `Breakpoint.address` of earlier breakpoints does not change. The
        old VM runs until the guest is resolved and built, and the machine has what the new one needs.

        Args:
            build: Whether to run make in the kernel's tree first.
            jobs: With `build`: number of parallel jobs; None: one for each CPU.
            report: Called with each long step.
            timeout: Seconds to wait for QEMU's answer.
            build_timeout: Seconds for finding and building the guest.

        Raises:
            StateError: the VM belongs to another process, or a person shares the GDB.
            UsageError: with `build`, the guest's kernel does not come from a build tree.
            BuildError: make failed.
            HostError: the machine lacks something, such as space on its disk.
            LaunchError: QEMU did not start; the VM has ended.
            DeadlineError: a step took too long, or GDB longer than `attach_timeout`.
        """
        options = restart.options_of(self.vm)
        deadline = Deadline.after(build_timeout)
        if build:
            tree = tree_build.tree_of(options)
            needs = tree_build.needs_of(options)
            tree_build.build(tree, needs=needs, jobs=jobs, report=report, deadline=deadline)
        gdb = self._gdb
        spec = restart.resolve(self.vm, halt=None if gdb is None else True, report=report, deadline=deadline)
        start = restart.prepare(self.vm, spec, report=report, launch_seconds=timeout)
        self._console_held.close()
        self._console = self._drgn = None
        if gdb is not None and gdb.state in (State.STOPPED, State.RUNNING):
            gdb.detach()
        self.vm = restart.replace(self.vm, spec, start, report=report, launch_seconds=timeout)
        if self.restarted is not None:
            self.restarted()
        self._connect_shell()
        if gdb is not None:
            attaching.reattach(gdb, self.vm, force=self._force, timeout=self.attach_timeout)

    def _attached(self, timeout: float) -> Gdb:
        return attaching.attach(self.vm, preloaded=self._preloaded, force=self._force, timeout=timeout)
