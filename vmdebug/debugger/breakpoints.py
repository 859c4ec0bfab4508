"""Sets, lists and deletes breakpoints. GDB stops a running guest for this, and resumes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, SupportsIndex

from vmdebug.debugger import breakpoint as mi_breakpoint
from vmdebug.debugger import gdb_errors
from vmdebug.debugger.breakpoint import Breakpoint, Catch
from vmdebug.debugger.breakpoint_table import BreakpointTable, Callback, Entry
from vmdebug.debugger.connection import NOT_RUNNING, Connection
from vmdebug.debugger.control import RunControl
from vmdebug.debugger.identity import Identity
from vmdebug.debugger.inspection import Inspection
from vmdebug.debugger.memory import COMMAND_SECONDS
from vmdebug.debugger.modules import ModuleSymbols
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import OOPS, PANIC, WARNING, Thread
from vmdebug.errors import GdbError, UsageError

_PANICS = (
    # In newer kernels panic() calls vpanic(), as do other callers.
    (PANIC, ("vpanic", "panic")),
    # die(), page faults and BUG() of every architecture call it; oops_begin() exists on one architecture
    # only.
    (OOPS, ("oops_enter",)),
    (WARNING, ("__warn",)),
)
"""The functions for each reason, of which a kernel has at least one. They are in kernel/panic.c, and run
before the kernel prints."""


class Breakpoints:
    """Sets breakpoints and watchpoints.

    Args:
        connection: The connection to GDB.
        table: The breakpoints that were set.
        control: Stops and resumes the guest.
        identity: Refuses places that are never hit.
        inspection: Lists the CPUs.
        modules: Loads symbols for pending breakpoints.
        on_set: Called with the number of each new breakpoint.
    """

    def __init__(
        self,
        connection: Connection,
        table: BreakpointTable,
        *,
        control: RunControl,
        identity: Identity,
        inspection: Inspection,
        modules: ModuleSymbols,
        on_set: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._table = table
        self._control = control
        self._identity = identity
        self._inspection = inspection
        self._modules = modules
        self._on_set = on_set

    def set(
        self,
        where: str | SupportsIndex,
        *,
        when: str = "",
        temporary: bool = False,
        hardware: bool = False,
        ignore: int = 0,
        cpu: int | None = None,
        pending: bool = False,
        callback: Callback | None = None,
        timeout: float = COMMAND_SECONDS,
    ) -> Breakpoint:
        """Set a breakpoint; a running guest is stopped for this, and continues.

        vmdebug calls a callback with the `Stop` of each hit, within the call that waits: `cont`, `wait_stop`,
        `session.exec`. The callback may read values, step, finish, and set and delete breakpoints, including
        its own. If it returns True, the waiting call returns that stop; otherwise the guest continues. If it
        raises, the waiting call raises that exception, and the guest stays stopped. A hit ends a step, finish
        or until, whatever the callback returns.

        Args:
            where: A symbol, file:line, `*expression`, or an address, for example the `Value` of a pointer.
            when: Condition, in the language of the place.
            temporary: Whether GDB deletes it at its first stop.
            hardware: Whether it uses one of the CPU's debug registers. Under KVM, only such a breakpoint
                works before the kernel has mapped itself, and where the kernel rewrites its own code, as at
                a jump label; there vmdebug uses one without being asked.
            ignore: Number of hits to ignore.
            cpu: Number of the CPU on which it stops; None: all CPUs.
            pending: Whether `where` may name a symbol of a module that is not loaded yet.
            callback: Called at each hit.
            timeout: Seconds for a running guest to stop, and for GDB to answer.

        Raises:
            UsageError: there is no such CPU, or the place is never hit.
            GdbError: GDB refused it: no such symbol, a condition that it cannot evaluate.
            DeadlineError: the guest did not stop, or GDB did not answer.
        """
        place = mi_breakpoint.location(where)
        what = f"a breakpoint at {place}"
        if cpu is not None:
            self._need_cpu(cpu, what, timeout)
        command = mi_breakpoint.insert(
            place,
            when=when,
            temporary=temporary,
            hardware=hardware,
            ignore=ignore,
            thread=None if cpu is None else Thread.of(cpu).id,
            pending=pending,
        )
        to_error = partial(gdb_errors.breakpoint_error, what=what, when=when)
        return self._insert(command, place, to_error=to_error, callback=callback, timeout=timeout)

    def watch(
        self,
        expression: str,
        *,
        access: Literal["write", "read", "access"] = "write",
        callback: Callback | None = None,
        timeout: float = COMMAND_SECONDS,
    ) -> Breakpoint:
        """Set a watchpoint; a running guest is stopped for this, and continues.

        Args:
            expression: What to watch: a variable, `*(int *)0x…`.
            access: "write" stops when the value changes, "read" when it is read, "access" at both.
            callback: Called at each hit; see `breakpoint`.
            timeout: Seconds for a running guest to stop, and for GDB to answer.

        Raises:
            GdbError: GDB refused it, or the expression is not in memory.
            DeadlineError: the guest did not stop, or GDB did not answer.
        """
        what = f"a watchpoint on {expression}"
        to_error = partial(gdb_errors.breakpoint_error, what=what, unknown=gdb_errors.WATCHABLE)
        command = mi_breakpoint.watch(expression, access=access)
        with self._control.held(timeout=timeout):
            made = self._insert(command, expression, to_error=to_error, callback=callback, timeout=timeout)
            # With a guest connected, GDB now knows whether QEMU can watch it.
            if self._connection.state is State.STOPPED and self.info(made.number)["type"] == "watchpoint":
                made.delete(timeout=timeout)
                raise GdbError(
                    f"{what}: it is not in memory, and GDB would watch it by single steps, on one CPU only",
                    command=command,
                    hint="use a breakpoint with a condition for a value in a register",
                )
        return made

    def catch_panic(
        self,
        *,
        oops: bool = True,
        warn: bool = False,
        callback: Callback | None = None,
        timeout: float = COMMAND_SECONDS,
    ) -> Catch:
        """Stop when the kernel panics, before it prints, reboots, or ends QEMU.

        The `reason` of the stop is `stop.PANIC`, `stop.OOPS` or `stop.WARNING`; its backtrace shows the
        cause. An oops that ends in a panic stops twice.

        Args:
            oops: Whether to stop also at oopses: BUG(), a fault in the kernel.
            warn: Whether to stop also at WARN().
            callback: Called at each of them; see `breakpoint`.
            timeout: Seconds for a running guest to stop, and for GDB to answer.

        Returns:
            A context manager that deletes the breakpoints at the end of the block.

        Raises:
            GdbError: the symbols have no such function.
            DeadlineError: the guest did not stop, or GDB did not answer.
        """
        caught: list[Breakpoint] = []
        with self._control.held(timeout=timeout):
            try:
                for reason, symbols in panics(oops=oops, warn=warn):
                    caught.append(self._catch(reason, symbols, callback, timeout))
            except BaseException:
                Catch(tuple(caught)).delete(timeout=timeout)
                raise
        return Catch(tuple(caught))

    def list(self, *, timeout: float = COMMAND_SECONDS) -> tuple[Breakpoint, ...]:
        """Return all breakpoints and watchpoints of GDB, including those that GDB commands have set.

        Args:
            timeout: Seconds for GDB to answer.

        Raises:
            DeadlineError: GDB did not answer.
        """
        body = self._connection.fetch("-break-list", timeout)["BreakpointTable"]["body"]
        # A breakpoint with several addresses has a row "1.1" for each.
        numbers = {int(row["number"]): row for row in body if row["number"].isdigit()}
        numbers.pop(self._modules.own_breakpoint, None)
        found = ((self._table.get(number), row) for number, row in numbers.items())
        return tuple(
            mi_breakpoint.listed(row, self) if entry is None else entry.breakpoint for entry, row in found
        )

    def delete_all(self, *, timeout: float = COMMAND_SECONDS) -> None:
        """Delete all breakpoints and watchpoints of GDB.

        Args:
            timeout: Seconds for a running guest to stop, and for GDB to answer.

        Raises:
            DeadlineError: the guest did not stop, or GDB did not answer.
        """
        with self._control.held(timeout=timeout):
            for each in self.list(timeout=timeout):
                each.delete(timeout=timeout)

    def delete_own(self, timeout: float) -> None:
        """Delete the breakpoints that this process has set."""
        if self._table and self._connection.state in (State.STOPPED, State.RUNNING):
            with self._control.held(timeout=timeout):
                for each in self._table.all():
                    self.delete(each, timeout)

    def delete(self, breakpoint: Breakpoint, timeout: float) -> None:  # noqa: A002 - the word of the field
        """Delete a breakpoint, if GDB still has it; see `Breakpoint.delete`."""
        self._table.remove(breakpoint.number)
        if self._connection.state is State.ENDED:
            return
        with self._control.held(timeout=timeout):
            self._connection.ask(f"-break-delete {breakpoint.number}", timeout)

    def change(self, command: str, where: str, timeout: float) -> None:
        """Execute an MI command that changes a breakpoint; see `Breakpoint`.

        Args:
            command: The MI command.
            where: The place of the breakpoint, for the error.
            timeout: Seconds for a running guest to stop, and for GDB to answer.

        Raises:
            GdbError: GDB refused it.
            DeadlineError: the guest did not stop, or GDB did not answer.
        """
        with self._control.held(timeout=timeout):
            what = f"the breakpoint at {where}"
            try:
                answer = self._connection.ask(command, timeout)
            except GdbError as error:
                raise gdb_errors.breakpoint_error(error, what, unknown=gdb_errors.IN_SCOPE) from error
            if "No breakpoint number" in answer.console + answer.log:  # GDB does not report this as an error
                raise GdbError(f"{what} has been deleted", command=command, words=answer.log)

    def info(self, number: int) -> Mapping[str, Any]:
        """Return GDB's description of a breakpoint: "times", "enabled", "addr".

        Raises:
            GdbError: there is no breakpoint with that number.
        """
        command = f"-break-info {number}"
        for row in self._connection.fetch(command)["BreakpointTable"]["body"]:
            if row.get("number") == str(number):
                return dict(row)
        raise GdbError(f"GDB has no breakpoint {number}", command=command)

    def _catch(
        self, reason: str, symbols: Sequence[str], callback: Callback | None, timeout: float
    ) -> Breakpoint:
        for symbol in symbols:
            what = f"a breakpoint at {symbol}"
            to_error = partial(gdb_errors.breakpoint_error, what=what, unknown=gdb_errors.UNKNOWN_PLACE_NOW)
            try:
                command = mi_breakpoint.insert(symbol)
                return self._insert(
                    command, symbol, to_error=to_error, callback=callback, reason=reason, timeout=timeout
                )
            except GdbError as error:
                if symbol == symbols[-1] or "not defined" not in error.words:
                    raise
        raise AssertionError("no symbols to catch")

    def _insert(
        self,
        command: str,
        where: str,
        *,
        to_error: Callable[[GdbError], GdbError],
        callback: Callback | None = None,
        reason: str = "",
        timeout: float,
    ) -> Breakpoint:
        self._connection.need("a breakpoint", *NOT_RUNNING, State.RUNNING)
        with self._control.held(timeout=timeout):
            try:
                payload = self._placed(command, timeout)
            except GdbError as error:
                raise to_error(error) from error
            made = mi_breakpoint.made(payload, where, self)
            self._table.add(Entry(made, callback, reason))
            entry = payload.get("bkpt", {})
            self._modules.follow(self, pending="pending" in entry)
            never = self._identity.never_hit(entry, where)
            if never is not None:
                self.delete(made, timeout)
                raise never
            self._on_set(made.number)
        return made

    def _placed(self, command: str, timeout: float) -> Mapping[str, Any]:
        """Set a breakpoint or watchpoint; in a debug register if the kernel rewrites the code there."""
        payload = self._connection.fetch(command, timeout)
        number = payload.get("bkpt", {}).get("number")
        if number is None or not self._identity.need_hardware(int(number)):
            return payload
        self._connection.ask(f"-break-delete {number}", timeout)
        return self._connection.fetch(mi_breakpoint.in_hardware(command), timeout)

    def _need_cpu(self, cpu: int, what: str, timeout: float) -> None:
        """Check that the guest has a CPU; GDB would wait for it forever."""
        if self._connection.state not in (State.STOPPED, State.RUNNING):
            return
        with self._control.held(timeout=timeout):
            there = [thread.cpu for thread in self._inspection.threads(timeout=timeout)]
        if cpu not in there:
            raise UsageError(
                f"{what}: the guest has no CPU {cpu}", hint=f"its CPUs are {', '.join(map(str, there))}"
            )


def panics(*, oops: bool, warn: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return the reasons of `catch_panic`, with their functions.

    Args:
        oops: Whether to stop at oopses and BUG(), which do not always end in a panic.
        warn: Whether to stop at WARN().
    """
    wanted = {PANIC: True, OOPS: oops, WARNING: warn}
    return ((reason, symbols) for reason, symbols in _PANICS if wanted[reason])
