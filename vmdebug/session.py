"""A debugging session: one VM, its console and its GDB, under one owner of the run state.

While GDB is attached, only GDB resumes the guest: after a QMP `cont` that it does not know of, it loses
packets. So every call that needs the guest running or stopped goes through the session. A call that the
present state does not allow raises at once, instead of waiting for something that cannot happen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, Unpack, overload

from vmdebug import config, restart, sources, vm
from vmdebug.channel.serial.console import Console
from vmdebug.channel.shell import ExecResult, Job, Streams, input_of
from vmdebug.deadline import BUILD_SECONDS, LAUNCH_SECONDS, Deadline
from vmdebug.debugger import share
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.identity import Wanted
from vmdebug.debugger.ownership import VmOwner
from vmdebug.debugger.preloaded import PreloadedGdb
from vmdebug.debugger.runstate import State
from vmdebug.errors import StateError
from vmdebug.guest import StartOptions, changed
from vmdebug.progress import Report, silent
from vmdebug.sources import tree_build
from vmdebug.trace.collector import Collector

ATTACH_SECONDS = 120.0
"""How long GDB may take to load a kernel's symbols and connect."""

STOP_SECONDS = 30.0
"""How long the end of a session may take."""

_ATTACHED = "GDB to be attached"
"""What the deadline is for, in its error."""


class DebugSession:
    """A VM with its console and its GDB, each opened at its first use.

    Made by `start` and `attach`; a context manager. At its end GDB detaches, and a VM that the session
    started ends.

    Args:
        machine: The running VM.
        owned: Whether the VM ends with the session.
        force: Whether to go on with symbols of another build than the kernel that runs; `gdb.notes` has a
            warning.
        preloaded: A GDB that loads the guest's symbols already. The caller closes it, in case nobody took it.
    """

    def __init__(
        self, machine: vm.Vm, *, owned: bool, force: bool = False, preloaded: PreloadedGdb | None = None
    ) -> None:
        self.vm = machine
        self.restarted: Callable[[], None] | None = None
        """Called by `restart` once `vm` is the new VM."""
        self._owned = owned
        self._force = force
        self._preloaded = preloaded
        self._console_held = contextlib.ExitStack()
        self._console: Console | None = None
        self._gdb: Gdb | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach GDB, and end the VM if the session started it.

        Otherwise a guest that has not panicked runs on.

        Raises:
            DeadlineError: QEMU did not end, not even by SIGKILL.
        """
        try:
            with self._console_held:
                if self._gdb is not None:
                    # A detached guest runs on, and one that has panicked would reboot.
                    self._gdb.close(resume=self._owned or self.status != "panicked")
            self.vm.shell.close()
        finally:
            introduced = self._console is not None or self._gdb is not None
            self._console = self._gdb = None
            if introduced:
                self._introduce()
            if self._owned:
                self.vm.stop(timeout=STOP_SECONDS)

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.vm.name

    @property
    def status(self) -> str:
        """`halted`, `running`, `paused`, `panicked` or `exited`."""
        return self.vm.status()

    @property
    def console(self) -> Console:
        """The guest's serial line. Nobody else can use it until the session ends.

        Raises:
            StateError: another process uses it; the message has its pid.
        """
        if self._console is None:
            self._console = self._console_held.enter_context(self.vm.console())
            self._introduce()
        return self._console

    @property
    def gdb(self) -> Gdb:
        """The attached GDB. Its first use attaches it, which stops the guest.

        While a person shares a GDB (`vmdebug attach --share`), it is that one, and the guest is not stopped.

        Raises:
            StateError: another GDB is attached; the message has its pid.
            HostError: there is no GDB on this machine.
            GdbError: GDB did not load the symbols or did not connect.
            MismatchError: the symbols are not those of the kernel in guest memory. If the kernel is not
                mapped yet, the call that runs the guest to that point raises it.
        """
        if self._gdb is None:
            self._gdb = self._attach(ATTACH_SECONDS)
            self._introduce()
        return self._gdb

    def collector(self) -> Collector:
        """Return what collects the hits of one `vmdebug.Trace`: the attached GDB.

        Raises:
            VmdebugError: see `gdb`.
        """
        return self.gdb.collector()

    def exchanges(self) -> str:
        """Return the last commands and answers of the attached GDB, in GDB/MI; "" if none is attached."""
        return "" if self._gdb is None else self._gdb.exchanges()

    @contextlib.contextmanager
    def examined(self, *, timeout: float = ATTACH_SECONDS) -> Iterator[Gdb]:
        """Hold the guest stopped for questions to GDB, and leave everything as it was found.

        If no GDB is attached, one is for the block.

        Args:
            timeout: Seconds until GDB is attached and the guest is stopped.

        Raises:
            VmdebugError: see `gdb`.
            DeadlineError: the guest did not stop.
        """
        if self._gdb is not None:
            with self._gdb.held(timeout=timeout):
                yield self._gdb
            return
        was = self.status
        gdb = self._attach(timeout)
        try:
            with gdb.held(timeout=timeout):
                yield gdb
        finally:
            gdb.close(resume=was == "running")

    @property
    def notes(self) -> tuple[str, ...]:
        """The warnings of GDB: `gdb.notes`, once it is attached."""
        return () if self._gdb is None else tuple(self._gdb.notes)

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
            command: A line for its shell, or an argv.
            stdin: Its standard input; None: it has none.
            timeout: Seconds for all of it, the boot included when the guest still boots.
            check: Whether an exit status other than 0 is an error.
            wait: Whether to wait for its end. Without, a `Job` is returned, whose `result` does: what stops
                the guest at a breakpoint on the way can be looked at in between.

        Raises:
            StateError: the guest does not run, or stops on the way. That stop is kept for `gdb.wait_stop`,
                and the command goes on with the guest.
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

    def snapshot(self, tag: str) -> None:
        """Take a snapshot of the guest, which then runs or is stopped as before.

        Args:
            tag: The snapshot's name.

        Raises:
            UsageError: the tag is not valid, or is taken.
            HostError: this QEMU cannot take snapshots.
            VmError: this guest cannot be saved: a 9p share is mounted, a disk is not qcow2.
        """
        with self._held():
            self.vm.snapshot(tag)

    def restore(self, tag: str) -> None:
        """Load a snapshot. A running guest runs on from there, a stopped one stays stopped.

        Breakpoints stay as they are now. Frames of earlier stops are invalid.

        Args:
            tag: The snapshot's name.

        Raises:
            UsageError: there is none of that name; the hint lists the names.
            VmError: QEMU cannot load it.
        """
        with self._held():
            self.vm.restore(tag, run=self._gdb is None)
            if self._console is not None:
                self._console.restored()
            self.vm.shell.forget()
            if self._gdb is not None:
                self._gdb.replaced()

    def _introduce(self) -> None:
        """Tell the guest's shell which console is open here, and which debugger may stop the guest."""
        self.vm.shell.console, self.vm.shell.debugger = self._console, self._gdb
        if self._console is not None:
            self._console.debugger = self._gdb

    def _held(self) -> contextlib.AbstractContextManager[None]:
        """Have an attached GDB hold the guest stopped.

        Then no breakpoint of GDB is in the memory that is saved or loaded, and only GDB resumes the guest.
        """
        return contextlib.nullcontext() if self._gdb is None else self._gdb.held()

    def restart(
        self,
        *,
        build: bool = False,
        jobs: int | None = None,
        report: Report = silent,
        timeout: float = LAUNCH_SECONDS,
    ) -> None:
        """Start the VM again, with its name, its options and the present build of its kernel.

        An attached GDB stays: it loads the symbols again, keeps its breakpoints by their names and lines, and
        finds the guest at the reset vector. `Breakpoint.address` of earlier breakpoints does not change. The
        VM runs until the guest is resolved and built.

        Args:
            build: Whether to run make in the kernel's tree first.
            jobs: With `build`: number of compilers at once; None for one a CPU.
            report: Told about long steps.
            timeout: Seconds until QEMU has to answer.

        Raises:
            StateError: the VM belongs to another process, or a person shares the GDB.
            UsageError: with `build`, the guest's kernel is not built in a tree.
            BuildError: make failed.
            LaunchError: QEMU did not start; the VM has ended.
        """
        options = restart.options_of(self.vm)
        deadline = Deadline.after(BUILD_SECONDS)
        if build:
            tree = tree_build.tree_of(options)
            tree_build.build(tree, jobs=jobs, report=report, deadline=deadline)
        gdb = self._gdb
        spec = restart.resolve(self.vm, halt=None if gdb is None else True, report=report, deadline=deadline)
        self._console_held.close()
        self._console = None
        if gdb is not None and gdb.state in (State.STOPPED, State.RUNNING):
            gdb.detach()
        self.vm = restart.replace(self.vm, spec, report=report, launch_seconds=timeout)
        if self.restarted is not None:
            self.restarted()
        self._introduce()
        if gdb is not None:
            self._take_up(gdb)

    def _take_up(self, gdb: Gdb) -> None:
        """Connect the GDB that was attached before to the new VM."""
        deadline = Deadline.after(ATTACH_SECONDS)
        vmlinux = self.vm.state.spec.kernel.vmlinux
        with contextlib.ExitStack() as undo:
            owner = undo.enter_context(VmOwner.claim(self.vm.rundir.attach_lock, self.name))
            if vmlinux is not None:
                gdb.reload(vmlinux, timeout=ATTACH_SECONDS)
            self._connect(gdb, owner, deadline)
            undo.pop_all()

    def _needs_running(self, call: str) -> None:
        """Raise where our GDB holds the guest stopped; another's shows when the guest does not answer."""
        if self._gdb is not None and self._gdb.stopped:
            raise StateError(
                f"{call} needs a running guest, and GDB holds it stopped",
                hint="set it running first: session.gdb.cont(wait=False)",
            )

    def _attach(self, timeout: float) -> Gdb:
        """Return a GDB on the guest: that of a person who shares it, or one of our own."""
        deadline = Deadline.after(timeout)
        lock = self.vm.rundir.attach_lock
        shared = share.ask(lock, timeout)
        if shared is not None:
            return Gdb.join(
                shared,
                timeout=deadline.left(_ATTACHED),
                interrupter=self.vm.pause,
                wanted=self._wanted(),
            )
        with contextlib.ExitStack() as undo:
            owner = undo.enter_context(VmOwner.claim(lock, self.name))
            gdb = undo.enter_context(self._new_gdb(deadline))
            self._connect(gdb, owner, deadline)
            undo.pop_all()
        return gdb

    def _new_gdb(self, deadline: Deadline) -> Gdb:
        preloaded = None if self._preloaded is None else self._preloaded.take()
        kernel = self.vm.state.spec.kernel
        return preloaded or Gdb.of(kernel, timeout=deadline.left(_ATTACHED))

    def _connect(self, gdb: Gdb, owner: VmOwner, deadline: Deadline) -> None:
        gdb.connect(
            self.vm.state.gdb,
            timeout=deadline.left(_ATTACHED),
            owner=owner,
            interrupter=self.vm.pause,
            wanted=self._wanted(),
        )

    def _wanted(self) -> Wanted | None:
        """Return the kernel that the guest should run; None without symbols to prove."""
        spec = self.vm.state.spec
        if spec.kernel.vmlinux is None:
            return None
        return Wanted(
            kernel=spec.kernel,
            accel=self.vm.state.accel,
            kaslr="nokaslr" not in spec.parameters,
            force=self._force,
        )


def start(
    guest: str | os.PathLike[str] | None = None,
    *,
    report: Report = silent,
    timeout: float = LAUNCH_SECONDS,
    **options: Unpack[StartOptions],
) -> DebugSession:
    """Start a guest that ends with the session, even if this process is killed.

    Args:
        guest: GUEST as on the command line; None is vmdebug.toml's default, else the builtin guest.
        report: Told about long steps.
        timeout: Seconds in which QEMU has to answer; building the guest is not counted.
        **options: What `vmdebug start` takes, see `StartOptions`; they go before vmdebug.toml's.

    Returns:
        The session, a context manager.

    Raises:
        UsageError: the guest or an option cannot be right.
        HostError: the machine lacks something.
        MismatchError: kernel and symbols do not belong together.
        LaunchError: QEMU did not start.
    """
    words = None if guest is None else os.fspath(guest)
    wanted = changed(config.lookup(words, Path.cwd()), options)
    spec = sources.resolve(wanted, report=report, deadline=Deadline.after(BUILD_SECONDS))
    machine = vm.launch(spec, bound=True, report=report, timeout=timeout, exact_name=wanted.name is not None)
    return DebugSession(machine, owned=True, force=wanted.force)


def attach(name: str | None = None, *, force: bool = False) -> DebugSession:
    """Use a VM that `vmdebug start` left running. It goes on after the session.

    Args:
        name: Its name; None for the only one that runs.
        force: Whether to go on with symbols of another build than the kernel that runs.

    Raises:
        UsageError: there is no such VM, or several and no name.
    """
    return DebugSession(vm.find(name), owned=False, force=force)
