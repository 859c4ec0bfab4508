"""One GDB on one guest.

`Gdb` combines these parts, each of which owns its state: `connection` (commands, run state), `identity` and
`modules` (symbols), `inspection` (values and frames), `control` (running and stopping), `breakpoints`, and
`ownership` (who may use the gdbstub).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from vmdebug import arch, process
from vmdebug.arch import Arch
from vmdebug.deadline import Deadline
from vmdebug.debugger import loading, mi, startup
from vmdebug.debugger.breakpoint_table import BreakpointTable
from vmdebug.debugger.breakpoints import Breakpoints
from vmdebug.debugger.collector import GdbCollector
from vmdebug.debugger.connection import Connection
from vmdebug.debugger.control import RUN_SECONDS, STOP_SECONDS, RunControl
from vmdebug.debugger.identity import Identity, Verdict, Wanted
from vmdebug.debugger.inspection import Inspection
from vmdebug.debugger.memory import COMMAND_SECONDS
from vmdebug.debugger.modules import LOAD_SECONDS, ModuleSymbols
from vmdebug.debugger.ownership import UNCLAIMED, Owner
from vmdebug.debugger.past import Past
from vmdebug.debugger.runstate import State
from vmdebug.debugger.share import SharedOwner
from vmdebug.debugger.stop import Stop
from vmdebug.errors import DeadlineError, StateError, VmdebugError
from vmdebug.guest import Kernel
from vmdebug.trace import probe
from vmdebug.trace.probe import Probe, TraceOptions
from vmdebug.trace.trace import Trace

_Part = TypeVar("_Part")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _of(
    part: Callable[[Gdb], _Part], method: Callable[Concatenate[_Part, _Arguments], _Result]
) -> Callable[Concatenate[Gdb, _Arguments], _Result]:
    """Return a method of `Gdb` that calls a method of one of its parts, and has its documentation."""

    @functools.wraps(method)
    def call(gdb: Gdb, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        return method(part(gdb), *args, **kwargs)

    return call


class Gdb:
    """One GDB; a context manager that detaches from the guest and ends GDB. Made by `start` or `join`.

    A GDB that a person shares keeps running, with its guest.
    """

    def __init__(self, connection: Connection, owner: Owner = UNCLAIMED) -> None:
        self.notes: list[str] = []
        """Warnings: kernel scripts that fail, symbols of another build, modules without symbols."""
        self._owner = owner
        self._connection = connection
        self._inspection = Inspection(connection)
        self._table = BreakpointTable()
        self._identity = Identity(connection.fetch, self.notes.append)
        self._control = RunControl(connection, self._table, self._identity, self._inspection)
        self._modules = ModuleSymbols(connection, self._table, self.notes.append)
        self._breakpoints = Breakpoints(
            connection,
            self._table,
            control=self._control,
            identity=self._identity,
            inspection=self._inspection,
            modules=self._modules,
            on_set=self._breakpoint_set,
        )

    @classmethod
    def start(
        cls,
        vmlinux: str | os.PathLike[str] | None,
        scripts: str | os.PathLike[str] | None = None,
        *,
        timeout: float = LOAD_SECONDS,
        program: str = "gdb",
        row: Arch | None = None,
    ) -> Self:
        """Start GDB with a kernel's symbols, not yet connected to a guest.

        Args:
            vmlinux: The ELF file with symbols; None for no symbols.
            scripts: Directory with `vmlinux-gdb.py` beside `scripts/gdb`, or None. If the scripts fail,
                `notes` has the reason.
            timeout: Seconds that GDB may take to load the symbols.
            program: GDB's name or path.
            row: The architecture of the guest; None: `gdbinit/` detects it from vmlinux.

        Raises:
            HostError: there is no GDB, or it is too old or has no Python.
            UsageError: GDB cannot read `vmlinux`; the message has GDB's reason.
            DeadlineError: it took too long.
        """
        deadline = Deadline.after(timeout)
        # vmdebug matches some of GDB's messages, so they must be in English.
        env = {**startup.environment(), "LC_ALL": "C.UTF-8"}
        beside = startup.importing("vmd_mi", "vmd_scripts", row=row)
        argv = [*startup.mi_argv(process.find(program, package="gdb")), "-iex", beside]
        gdb = cls(Connection.start(argv, env=env))
        try:
            loading.settings(gdb._connection, deadline)
            if vmlinux is not None:
                loading.symbols(gdb._connection, Path(vmlinux), deadline)
            loading.commands(gdb._connection, deadline)  # a thread in GDB has already imported them
            if scripts is not None:
                gdb.notes += loading.scripts(gdb._connection, Path(scripts), deadline)
        except BaseException:
            gdb.close()
            raise
        return gdb

    @classmethod
    def of(cls, kernel: Kernel, *, timeout: float = LOAD_SECONDS) -> Self:
        """Start GDB with the symbols, scripts and architecture of a kernel; raises as `start` does."""
        row = arch.by_name(kernel.arch)
        return cls.start(kernel.vmlinux, kernel.gdb_scripts, timeout=timeout, row=row)

    @classmethod
    def join(
        cls,
        owner: SharedOwner,
        *,
        timeout: float = LOAD_SECONDS,
        interrupter: Callable[[], None] | None = None,
        wanted: Wanted | None = None,
    ) -> Self:
        """Use the GDB that a person shares. Breakpoints that are set here are deleted at the end.

        Args:
            owner: The connection to it; see `share.ask`. It is released at the end.
            timeout: Seconds.
            interrupter: See `connect`.
            wanted: See `connect`.

        Raises:
            StateError: that GDB is not connected to a guest.
            MismatchError: its symbols are not those of the kernel in the guest.
            GdbError: it refuses a command.
            DeadlineError: it does not answer.
        """
        gdb = cls(Connection.join(owner.pid, owner.terminal), owner)
        try:
            gdb._adopt(timeout)
            gdb._control.begin(interrupter)
            gdb._identity.begin(wanted)
            if gdb.stopped:
                gdb._identity.settle()
        except BaseException:
            gdb.close()
            raise
        return gdb

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """GDB's process id."""
        return self._connection.pid

    @property
    def state(self) -> State:
        """The present state of GDB and the guest."""
        return self._connection.state

    @property
    def stopped(self) -> bool:
        """Whether GDB holds the guest stopped."""
        return self.state is State.STOPPED

    @property
    def identity(self) -> Verdict | None:
        """The comparison with the kernel in guest memory, and its KASLR offset; None if not requested."""
        return self._identity.verdict

    def connect(
        self,
        endpoint: str | os.PathLike[str],
        *,
        timeout: float = LOAD_SECONDS,
        owner: Owner = UNCLAIMED,
        interrupter: Callable[[], None] | None = None,
        wanted: Wanted | None = None,
    ) -> Stop:
        """Attach to a guest, which stops it, and check that its kernel is the one of the symbols.

        Args:
            endpoint: Path of QEMU's gdbstub socket, or HOST:PORT.
            timeout: Seconds.
            owner: The claim on that gdbstub; this GDB releases it when it detaches.
            interrupter: Stops the running guest from outside, for example with QMP's `stop`, which QEMU
                reports to GDB as SIGINT; None: GDB interrupts it.
            wanted: The kernel to compare with, now or as soon as the guest has mapped it; None: do not
                compare.

        Returns:
            Where the guest was.

        Raises:
            StateError: GDB is already connected.
            MismatchError: the kernel in guest memory is from another build.
            GdbError: there is no gdbstub at the endpoint.
            DeadlineError: it took too long.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(owner.release)
            self._need_ours("connect")
            self._connection.need("connect", State.UNCONNECTED, State.DETACHED, State.GONE)
            undo.pop_all()
        self._owner.release()
        self._owner = owner
        self._control.begin(interrupter)
        self._identity.begin(wanted)
        self._select_target(endpoint, Deadline.after(timeout))
        where = self._control.take()
        if wanted is not None:
            self._modules.use(wanted.kernel.module_files())
            if wanted.kernel.module_files() and not self._identity.open:
                self._modules.load()
        return where

    def reload(self, vmlinux: str | os.PathLike[str], *, timeout: float = LOAD_SECONDS) -> None:
        """Load another kernel's symbols in place of the present ones, between two guests; breakpoints stay.

        Args:
            vmlinux: The ELF file with symbols.
            timeout: Seconds.

        Raises:
            StateError: GDB is connected to a guest.
            UsageError: GDB cannot read the file.
        """
        self._need_ours("reload")
        self._connection.need("reload", State.UNCONNECTED, State.DETACHED, State.GONE)
        loading.symbols(self._connection, Path(vmlinux), Deadline.after(timeout))

    def detach(self, *, timeout: float = STOP_SECONDS) -> None:
        """Remove the breakpoints from the guest, let it run, and disconnect.

        Args:
            timeout: Seconds.

        Raises:
            StateError: GDB is not attached, or it is the GDB of a person.
            DeadlineError: the guest did not stop.
        """
        self._need_ours("detach")
        self._connection.need("detach", State.STOPPED, State.RUNNING)
        deadline = Deadline.after(timeout)
        self._control.quiesce(deadline)
        with self._connection.run.detaching():
            self._connection.execute("-target-detach", deadline)
        self._owner.release()

    def close(self, *, resume: bool = True, timeout: float = STOP_SECONDS) -> None:
        """Detach from the guest and end GDB, by force if needed; a second call does nothing.

        A GDB that a person shares keeps running with its guest, without the breakpoints set here.

        Args:
            resume: Whether to let the guest run; otherwise it stays stopped.
            timeout: Seconds until GDB is ended by force.
        """
        deadline = Deadline.after(timeout)
        try:
            with contextlib.suppress(VmdebugError):
                self._let_go(resume=resume, timeout=timeout / 2)
        finally:
            self._connection.close(deadline)
            self._owner.release()
            self._control.close()

    def trace(
        self,
        where: str | Sequence[Probe],
        *,
        timeout: float = COMMAND_SECONDS,
        **options: Unpack[TraceOptions],
    ) -> Trace:
        """Return a trace, collected inside GDB: a sequence of hits, and a context manager.

        The guest runs inside the block, and is left as it was found.

        Args:
            where: A symbol, file:line, `*expression`; or several probes with their own expressions.
            timeout: Seconds for the guest to stop, at the start and at the end of the block, and for GDB to
                answer.
            **options: `args=`, `when=`, `count=`, `backtrace=`, `ret=`, `count_only=`; see
                `vmdebug.TraceOptions`. `overflow=` has no effect: GDB stops the guest at each hit.

        Raises:
            UsageError: `where` or `args` has the wrong form.
            GdbError: at the start of the block: there is no such place, or an expression or the condition can
                never be evaluated there.
            StateError: at the start of the block: GDB is not attached.
            DeadlineError: at the start or at the end of the block: the guest did not stop, or GDB did not
                answer.
        """
        return Trace(self.collector(timeout=timeout), probe.wanted(where, **options))

    def collector(self, *, timeout: float = COMMAND_SECONDS) -> GdbCollector:
        """Return a collector for one trace inside this GDB; `trace` uses it.

        Args:
            timeout: See `trace`.
        """
        return GdbCollector(self, self._connection.fetch, self._table, timeout)

    def exchanges(self) -> str:
        """Return the last GDB/MI commands and answers, one on each line; long ones are cut."""
        return "\n".join(self._connection.exchanges())

    @overload
    def cont(self, *, timeout: float = ..., wait: Literal[True] = ...) -> Stop: ...

    @overload
    def cont(self, *, timeout: float = ..., wait: Literal[False]) -> None: ...

    def cont(self, *, timeout: float = RUN_SECONDS, wait: bool = True) -> Stop | None:
        """Resume the guest, and return its next stop.

        Args:
            timeout: Seconds to wait for the stop.
            wait: Whether to wait for the stop; otherwise return None at once.

        Raises:
            StateError: it is not stopped.
            GdbError: GDB could not insert a breakpoint.
            GuestDiedError: the guest or QEMU ended.
            DeadlineError: it still runs.
        """
        return self._control.cont(timeout=timeout, wait=wait)

    def _running(self) -> RunControl:
        return self._control

    def _remembering(self) -> Past:
        return self._control.past

    def _breaking(self) -> Breakpoints:
        return self._breakpoints

    def _reading(self) -> Inspection:
        return self._inspection

    def _linking(self) -> ModuleSymbols:
        return self._modules

    resume = _of(_running, RunControl.resume)
    step = _of(_running, RunControl.step)
    next = _of(_running, RunControl.next)
    stepi = _of(_running, RunControl.stepi)
    finish = _of(_running, RunControl.finish)
    until = _of(_running, RunControl.until)
    back = _of(_running, RunControl.back)
    goto = _of(_remembering, Past.goto)
    last_write = _of(_remembering, Past.last_write)
    wait_stop = _of(_running, RunControl.wait_stop)
    interrupt = _of(_running, RunControl.interrupt)
    held = _of(_running, RunControl.held)
    fileno = _of(_running, RunControl.fileno)
    check_stop = _of(_running, RunControl.check_stop)
    runs = _of(_running, RunControl.runs)

    breakpoint = _of(_breaking, Breakpoints.set)
    watchpoint = _of(_breaking, Breakpoints.watch)
    catch_panic = _of(_breaking, Breakpoints.catch_panic)
    breakpoints = _of(_breaking, Breakpoints.list)
    delete_all = _of(_breaking, Breakpoints.delete_all)
    load_modules = _of(_linking, ModuleSymbols.load)

    evaluate = _of(_reading, Inspection.evaluate)
    printed = _of(_reading, Inspection.printed)
    per_cpu = _of(_reading, Inspection.per_cpu)
    console = _of(_reading, Inspection.console)
    threads = _of(_reading, Inspection.threads)
    frame = _of(_reading, Inspection.frame)
    select = _of(_reading, Inspection.select)
    backtrace = _of(_reading, Inspection.backtrace)
    backtraces = _of(_reading, Inspection.backtraces)
    dmesg = _of(_reading, Inspection.dmesg)
    replaced = _of(_reading, Inspection.replaced)

    def _need_ours(self, call: str) -> None:
        """Raise if GDB and its guest are a person's."""
        if not self._owner.exclusive:
            raise StateError(
                f"{call}: a person shares this GDB, pid {self.pid}, and its guest is theirs",
                hint="close() leaves it; only that person detaches, by `detach` there",
            )

    def _breakpoint_set(self, number: int) -> None:
        command = self._owner.on_breakpoint(number)
        if command:
            self._connection.ask(command)

    def _let_go(self, *, resume: bool, timeout: float) -> None:
        if self.state not in (State.STOPPED, State.RUNNING):
            return
        if not self._owner.exclusive:
            self._breakpoints.delete_own(timeout)
        elif resume:
            self.detach(timeout=timeout)
        else:
            # By "disconnect" GDB closes the connection without a packet that would resume the guest.
            self.console("disconnect", timeout=timeout)

    def _select_target(self, endpoint: str | os.PathLike[str], deadline: Deadline) -> None:
        run = self._connection.run
        try:
            self._connection.execute(f"-target-select remote {mi.bare(os.fspath(endpoint))}", deadline)
            self._connection.wait(lambda: run.unseen, deadline, f"the guest at {endpoint} to stop")
        except DeadlineError as error:
            hint = "QEMU serves one GDB at a time: another one may be attached"
            raise DeadlineError(error.message, hint=hint, detail=error.detail) from error
        run.need("connect", State.STOPPED)

    def _adopt(self, timeout: float) -> None:
        """Ask for the state of GDB and the guest, which GDB does not report to a new MI terminal."""
        state = self._connection.fetch("-vmd-run-state", timeout)["state"]
        if state == "unconnected":
            raise StateError(
                f"the shared GDB, pid {self.pid}, is not connected to a guest",
                hint="quit it, and attach again: vmdebug attach --share",
            )
        self._connection.run.adopt(State(state))
