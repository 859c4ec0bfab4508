"""A debugging session: one VM with its console and its GDB; it controls when the guest runs.

While GDB is attached, only GDB may resume the guest: after a `cont` on QMP, GDB loses packets. So every call
that needs the guest running or stopped goes through the session. A call that is impossible in the present
state raises at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, Unpack, overload

from vmdebug import attaching, collecting, config, profiling, replaying, restart, sources, ssh, vm
from vmdebug.attaching import ATTACH_SECONDS
from vmdebug.channel.files.copies import Copies
from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.serial.console import Console
from vmdebug.channel.shell import ExecResult, Job, Streams, input_of
from vmdebug.collecting import TRACE_SECONDS, By, Choice
from vmdebug.covering import COVERAGE_SECONDS, Coverage
from vmdebug.deadline import BUILD_SECONDS, LAUNCH_SECONDS, Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.preloaded import PreloadedGdb
from vmdebug.debugger.runstate import State
from vmdebug.drgn_program.access import DrgnAccess
from vmdebug.errors import StateError
from vmdebug.guest_options import StartOptions, changed
from vmdebug.ktests.testing import KernelTests
from vmdebug.profiling import ProfileOptions, Profiling
from vmdebug.progress import Report, silent
from vmdebug.recording.positions import Position
from vmdebug.replaying import REPLAY_SECONDS, SEEK_SECONDS
from vmdebug.sources import tree_build
from vmdebug.ssh import SSH_SECONDS
from vmdebug.trace import probe
from vmdebug.trace.probe import Probe, TraceOptions
from vmdebug.trace.probe import Wanted as WantedTrace
from vmdebug.trace.trace import Trace
from vmdebug.vm.machine import SNAPSHOT_SECONDS

STOP_SECONDS = 30.0
"""How long GDB, and then QEMU, may take to end with a session."""


class DebugSession(Copies, KernelTests, DrgnAccess):
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

    def trace(
        self,
        where: str | Sequence[Probe],
        *,
        by: By = "auto",
        timeout: float = TRACE_SECONDS,
        **options: Unpack[TraceOptions],
    ) -> Trace:
        """Return a trace: a sequence of hits, and a context manager that runs the guest in its block.

        The plugin in QEMU collects it without stopping the guest, if QEMU has loaded it (`trace_ready`) and
        it can collect all of the trace; or the guest's own kernel by kprobes, if the guest runs and its
        kernel has them. Otherwise GDB does, which stops the guest at each hit.

        Args:
            where: A symbol, file:line, `*expression`, a pattern of functions (`vfs_*`), or SYMBOL+N for the
                line N lines below the start of a function; or several probes with their own expressions.
            by: Who collects it: "auto", "plugin", "guest" or "gdb"; `Trace.collector` and `Trace.reason`
                have the choice of "auto".
            timeout: Seconds for the trace to begin, and to end: for the guest to stop, or for a CPU to pause.
            **options: `args=`, `when=`, `count=`, `backtrace=`, `ret=`, `count_only=`, `overflow=`, `until=`,
                `longer=`; see `vmdebug.TraceOptions`.

        Raises:
            UsageError: an argument has the wrong form; with `by="plugin"` or `by="guest"` also: it cannot
                collect an expression.
            StateError: with `by="plugin"`: QEMU has not loaded the plugin, or it cannot collect this. With
                `by="guest"`: the guest does not run, has no agent, or its kernel has no kprobes.
            VmdebugError: GDB cannot be attached; see `gdb`.
        """
        wanted = probe.wanted(where, **options)
        chosen = self.collector(wanted, by, timeout=timeout)
        return Trace(chosen.collector, chosen.wanted, reason=chosen.reason)

    def collector(self, wanted: WantedTrace, by: By = "auto", *, timeout: float = TRACE_SECONDS) -> Choice:
        """Return a collector for one `vmdebug.Trace`, and why it was chosen.

        Args:
            wanted: The trace.
            by: See `trace`.
            timeout: See `trace`.

        Raises:
            VmdebugError: see `trace`.
        """
        return collecting.choose(
            by,
            wanted,
            self.vm,
            attached=self._gdb,
            attach=lambda: self.gdb,
            force=self._force,
            timeout=timeout,
        )

    def coverage(
        self, *, source: str | os.PathLike[str] | None = None, timeout: float = COVERAGE_SECONDS
    ) -> Coverage:
        """Return a context manager that records which lines and branches of the kernel the guest executes.

        The plugin in QEMU records it: TCG, and `trace_ready="yes"` with QEMUs before 9.2. The guest's state
        does not change: that of a stopped guest begins when the guest runs.

        Args:
            source: The directory of the kernel's source; None: where its debugging information says.
            timeout: Seconds for the recording to begin.

        Raises:
            VmdebugError: see `Coverage.begin`, when the block begins.
        """
        return Coverage(
            self.vm,
            gdb=self._gdb,
            force=self._force,
            source=None if source is None else Path(source),
            timeout=timeout,
        )

    def profile(self, *, timeout: float = TRACE_SECONDS, **options: Unpack[ProfileOptions]) -> Profiling:
        """Return a profile, a context manager: it samples all CPUs of the guest in its block.

        The guest's kernel samples, by perf events. After the block, `Profiling.profile` is a
        `vmdebug.Profile`.

        Args:
            timeout: Seconds for the profile to begin, and to end.
            **options: `rate=`, `event=`, `idle=`, `inlined=`; see `vmdebug.ProfileOptions`.

        Raises:
            UsageError: an argument has the wrong form.
            StateError: the guest does not run, has no agent, or its kernel has no perf events.
            MismatchError: the symbols are not those of the kernel that runs.
        """
        return profiling.prepare(self.vm, attached=self._gdb, force=self._force, timeout=timeout, **options)

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

    def snapshot(self, tag: str, *, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Take a snapshot. Afterwards the guest runs or is stopped, as before.

        Args:
            tag: The snapshot's name.
            timeout: Seconds until QEMU has written it. An attached GDB may take as long to stop the guest.

        Raises:
            UsageError: the tag is invalid, or is taken.
            HostError: this QEMU cannot take snapshots.
            VmError: this guest cannot be saved: a 9p share is mounted, a disk is not qcow2.
            DeadlineError: the guest did not stop, or QEMU did not finish.
        """
        with self._held(timeout):
            self.vm.snapshot(tag, timeout=timeout)

    def restore(self, tag: str, *, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Load a snapshot. Afterwards a running guest continues, and a stopped one stays stopped.

        Breakpoints stay set. Frames of earlier stops become invalid.

        Args:
            tag: The snapshot's name.
            timeout: Seconds until QEMU has loaded it. An attached GDB may take as long to stop the guest.

        Raises:
            UsageError: there is no such snapshot; the hint lists the existing ones.
            VmError: QEMU cannot load it.
            DeadlineError: the guest did not stop, or QEMU did not finish.
        """
        with self._held(timeout):
            self.vm.restore(tag, run=self._gdb is None, timeout=timeout)
            if self._console is not None:
                self._console.line.restored()
            self.vm.shell.forget()
            self._drgn = None  # other modules may be loaded
            if self._gdb is not None:
                self._gdb.replaced()

    @property
    def recording(self) -> Path | None:
        """The directory of the recording that is made of the guest, or that it replays, or None."""
        replayed = replaying.of(self.vm)
        return self.vm.state.spec.record if replayed is None else replayed.recording

    @property
    def position(self) -> Position:
        """Where a replay is: instruction count, the guest's time, and the number of lines on the console.

        Raises:
            StateError: the VM is no replay.
            DeadlineError: QEMU does not answer.
        """
        return replaying.position(self.vm)

    def goto(self, to: int | str, *, timeout: float = SEEK_SECONDS) -> Position:
        """Go to a position of a replay, forward or back; breakpoints do not stop the guest on the way.

        Args:
            to: An instruction count; or `start`, `end`, `failure`, a time such as `2.5s`, or a text on the
                console.
            timeout: Seconds to get there.

        Raises:
            UsageError: there is no such position.
            StateError: the VM is no replay.
            DeadlineError: it took too long.
        """
        if self._gdb is None:
            return replaying.goto(self.vm, to, timeout=timeout)
        with self._gdb.held(timeout=timeout):
            self._gdb.goto(replaying.icount_of(self.vm, to), timeout=timeout)
        return self.position

    def _connect_shell(self) -> None:
        """Set the open console and the debugger of the guest's shell."""
        line = None if self._console is None else self._console.line
        self.vm.shell.line, self.vm.shell.debugger = line, self._gdb
        if line is not None:
            line.debugger = self._gdb

    def _held(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """Return a context in which an attached GDB keeps the guest stopped.

        Then the memory to save or load contains no breakpoint of GDB, and only GDB resumes the guest.
        """
        return contextlib.nullcontext() if self._gdb is None else self._gdb.held(timeout=timeout)

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


def start(
    guest: str | os.PathLike[str] | None = None,
    *,
    report: Report = silent,
    timeout: float = LAUNCH_SECONDS,
    build_timeout: float = BUILD_SECONDS,
    **options: Unpack[StartOptions],
) -> DebugSession:
    """Start a guest; it ends with the session, even if this process is killed.

    Args:
        guest: GUEST as on the command line; None: the default of vmdebug.toml, else the builtin guest.
        report: Called with each long step.
        timeout: Seconds to wait for QEMU's answer.
        build_timeout: Seconds for finding and building the guest; nix or make may build its kernel.
        **options: The options of `vmdebug start`, see `StartOptions`; they override those of vmdebug.toml.

    Returns:
        The session, a context manager.

    Raises:
        UsageError: the guest or an option is wrong.
        HostError: the machine lacks something.
        MismatchError: kernel and symbols are from different builds.
        BuildError: nix or make failed.
        LaunchError: QEMU did not start.
        DeadlineError: a step took too long.
    """
    words = None if guest is None else os.fspath(guest)
    wanted = changed(config.lookup(words, Path.cwd()), options)
    spec = sources.resolve(wanted, report=report, deadline=Deadline.after(build_timeout))
    machine = vm.launch(spec, bound=True, report=report, timeout=timeout, exact_name=wanted.name is not None)
    return DebugSession(machine, owned=True, force=wanted.force)


def replay(
    recording: str | os.PathLike[str] | None = None,
    *,
    to: int | str = "failure",
    name: str | None = None,
    report: Report = silent,
    timeout: float = REPLAY_SECONDS,
) -> DebugSession:
    """Replay a recording up to a position, where the guest is stopped; the replay ends with the session.

    Args:
        recording: Its path, or its name; None: the newest one.
        to: An instruction count; or `start`, `end`, `failure` (the first kernel trouble on the console, else
            the end), a time such as `2.5s`, or a text on the console.
        name: The name of the VM; None: that of the guest, and `-replay`.
        report: Called with each long step.
        timeout: Seconds to get there.

    Raises:
        UsageError: there is no such recording or position.
        StateError: it is still being recorded.
        HostError: the version of QEMU that recorded it is not here, or a file of the guest.
        LaunchError: QEMU did not start.
        DeadlineError: it took too long.
    """
    words = None if recording is None else os.fspath(recording)
    machine = replaying.start(words, to=str(to), name=name, bound=True, report=report, timeout=timeout)
    return DebugSession(machine, owned=True)


def attach(name: str | None = None, *, force: bool = False, timeout: float = ATTACH_SECONDS) -> DebugSession:
    """Return a session for a VM that `vmdebug start` has left running; the VM outlives the session.

    Args:
        name: The VM's name; None: the only one that runs.
        force: Whether to continue with symbols from another build than the running kernel.
        timeout: Seconds to find the VM while another vmdebug removes one; and the session's `attach_timeout`.

    Raises:
        UsageError: there is no such VM; or there are several, and no name is given.
        StateError: the VM has not started yet; or its run directory was removed.
        DeadlineError: another vmdebug kept the runtime directory locked.
    """
    return DebugSession(vm.find(name, timeout=timeout), owned=False, force=force, attach_timeout=timeout)
