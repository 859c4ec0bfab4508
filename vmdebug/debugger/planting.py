"""Breakpoints, watchpoints, traces: what is planted in a guest, running or not."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, SupportsIndex

from vmdebug.debugger import breakpoints, mi, panics, refused
from vmdebug.debugger.breakpoints import Breakpoint, Callback, Catch
from vmdebug.debugger.collector import GdbCollector
from vmdebug.debugger.control import Control
from vmdebug.debugger.inspection import STANDING
from vmdebug.debugger.runstate import RunState, State
from vmdebug.debugger.stop import Stop, Thread
from vmdebug.debugger.transport import Transport
from vmdebug.errors import GdbError, UsageError
from vmdebug.trace import probe
from vmdebug.trace.probe import Probe
from vmdebug.trace.trace import Trace


class Planting(Control):
    """What a `gdb.Gdb` plants; a running guest is stopped for it and goes on."""

    def __init__(self, transport: Transport, state: RunState) -> None:
        super().__init__(transport, state)
        self.notes: list[str] = []
        """What can be done without: the kernel's scripts do not work, the symbols are of another build."""
        self._starting = 0
        self._modules: Path | None = None
        self._has_modules = False

    def breakpoint(
        self,
        where: str | SupportsIndex,
        *,
        when: str = "",
        temporary: bool = False,
        hardware: bool = False,
        ignore: int = 0,
        thread: Thread | int | None = None,
        pending: bool = False,
        callback: Callback | None = None,
    ) -> Breakpoint:
        """Set a breakpoint; a running guest is stopped for it and goes on.

        A callback gets the `Stop` of each hit, inside whichever call of ours waits: `cont`, `wait_stop`,
        `session.exec`. It may do what a stopped guest allows: read values, set and delete breakpoints, also
        its own, step and finish. True has the waiting call return that stop; otherwise the
        guest goes on. What it raises comes out of that call, with the guest stopped. A step, finish or
        until that it interrupts ends there, whatever it returns.

        Args:
            where: A symbol, file:line, `*expression`, or an address, also a pointer's `Value`.
            when: Condition, in the language of the place.
            temporary: Whether it goes with its first stop.
            hardware: Whether it takes one of the CPU's debug registers; under KVM the only kind that works
                before the kernel has mapped itself.
            ignore: How many hits to pass over.
            thread: The one CPU that it is for; a number is GDB's, CPU 0 is 1.
            pending: Whether it may name what isn't there yet.
            callback: Called at each hit.

        Raises:
            UsageError: there is no such CPU.
            GdbError: GDB refused it: no such symbol, a condition that cannot be evaluated.
        """
        place = breakpoints.location(where)
        number = thread.id if isinstance(thread, Thread) else thread
        if number is not None:
            self._need_cpu(number, f"a breakpoint at {place}")
        return self._insert(
            breakpoints.insert(
                place,
                when=when,
                temporary=temporary,
                hardware=hardware,
                ignore=ignore,
                thread=number,
                pending=pending,
            ),
            place,
            refusal=partial(refused.planting, what=f"a breakpoint at {place}", when=when),
            callback=callback,
        )

    def watchpoint(
        self,
        expression: str,
        *,
        access: Literal["write", "read", "access"] = "write",
        callback: Callback | None = None,
    ) -> Breakpoint:
        """Stop when a value changes, or memory is read; a running guest is stopped for it and goes on.

        Args:
            expression: What is watched: a variable, `*(int *)0x…`.
            access: "write" stops at changes, "read" and "access" at reads and at both.
            callback: Called at each hit, as a breakpoint's.

        Raises:
            GdbError: GDB refused it, or it lies in no memory.
        """
        what = f"a watchpoint on {expression}"
        refusal = partial(refused.planting, what=what, absent=refused.HERE)
        command = breakpoints.watch(expression, access=access)
        with self.held():
            made = self._insert(command, expression, refusal=refusal, callback=callback)
            # A guest that is there shows by now whether QEMU can watch it.
            if self.state is State.STOPPED and self.breakpoint_info(made.number)["type"] == "watchpoint":
                made.delete()
                raise GdbError(
                    f"{what}: QEMU watches memory; GDB would step each instruction, of one CPU alone",
                    command=command,
                    hint="what lies in a register is seen by a breakpoint with a condition",
                )
        return made

    def catch_panic(
        self, *, oops: bool = True, warn: bool = False, callback: Callback | None = None
    ) -> Catch:
        """Stop where the kernel panics, before it prints, reboots, or ends QEMU.

        The stop's `reason` is `stop.PANIC`, `stop.OOPS` or `stop.WARNING`; its backtrace shows who did it. An
        oops that ends in a panic stops twice.

        Args:
            oops: Whether to stop at oopses too: BUG(), a fault in the kernel.
            warn: Whether to stop at WARN() too.
            callback: Called at each of them, as a breakpoint's.

        Returns:
            A context manager; what it has set is gone at the end of the block.

        Raises:
            GdbError: the symbols have no such function.
        """
        caught: list[Breakpoint] = []
        with self.held():
            try:
                for reason, symbols in panics.places(oops=oops, warn=warn):
                    caught.append(self._catch(reason, symbols, callback))
            except BaseException:
                Catch(tuple(caught)).delete()
                raise
        return Catch(tuple(caught))

    def load_modules(self, directory: str | os.PathLike[str] | None = None) -> None:
        """Give GDB the symbols of the modules that are loaded by now; what has none is put into `notes`.

        A breakpoint that is `pending` has a module's symbols loaded by itself, before its init function runs.

        Args:
            directory: Where files are that the kernel's own directory does not have, from now on. All others
                are where the guest's kernel has them, else beside vmlinux and in /lib/modules.

        Raises:
            StateError: the guest runs.
            GdbError: there is no such directory.
        """
        self._need("load_modules", State.STOPPED)
        commands = ["python import vmd_modules; vmd_modules.Modules()"]
        if self._modules is not None:
            commands.append(f"set $vmd_modules_path = {mi.quote(str(self._modules))}")
        where = "" if directory is None else f" {shlex.quote(os.fspath(directory))}"
        for command in (*commands, f"vmd-modules{where}"):
            said = self._ask(f"-interpreter-exec console {mi.quote(command)}")
            self.notes.extend(line for line in said.log.splitlines() if "no symbols" in line)
        self._has_modules = "no module is loaded" not in said.console

    def breakpoints(self) -> tuple[Breakpoint, ...]:
        """Return all breakpoints and watchpoints that GDB has, also those that its own commands have set."""
        body = self._ask("-break-list").payload["BreakpointTable"]["body"]
        # Not the places of one that has several, nor our own.
        rows = (row for row in body if row["number"].isdigit() and int(row["number"]) != self._starting)
        return tuple(
            self._breakpoints.get(int(row["number"])) or breakpoints.listed(row, self) for row in rows
        )

    def delete_all(self) -> None:
        """Take all of them out."""
        with self.held():
            for each in self.breakpoints():
                each.delete()

    def trace(
        self,
        where: str | Sequence[Probe],
        *,
        args: Sequence[str] = (),
        when: str = "",
        count: int | None = None,
        backtrace: bool = False,
        ret: bool = False,
    ) -> Trace:
        """Return a trace, collected inside GDB: a sequence of hits, and a context manager.

        The guest runs inside the block, and is left as it was found.

        Args:
            where: A symbol, file:line, `*expression`; or several probes with their own expressions.
            args: Expressions to collect at each hit, in the language of the place.
            when: Condition of a hit, in the same language.
            count: How many hits; later ones are ignored.
            backtrace: Whether to collect the frames.
            ret: Whether to collect the return value, which takes a second stop a hit.

        Raises:
            UsageError: there is no place.
            GdbError: at the start of the block: there is no such place, or an expression or the condition can
                be evaluated at no hit.
            StateError: at the start of the block: GDB isn't attached.
        """
        wanted = probe.wanted(where, args=args, when=when, count=count, backtrace=backtrace, ret=ret)
        return Trace(self.collector(), wanted)

    def collector(self) -> GdbCollector:
        """Return what collects one trace inside this GDB; `trace` is the short way to it."""
        return GdbCollector(self, self._payload, self._breakpoints)

    def delete(self, breakpoint: Breakpoint) -> None:  # noqa: A002 - the word of the field
        """Take a breakpoint out; nothing happens when GDB has it no more, or has ended."""
        self._breakpoints.pop(breakpoint.number, None)
        if self.state is State.ENDED:
            return
        with self.held():
            self._ask(f"-break-delete {breakpoint.number}")

    def change(self, command: str, where: str) -> None:
        """Change a breakpoint by an MI command; `Breakpoint` has the words for it.

        Args:
            command: The MI command.
            where: What the breakpoint was asked for with, for the error.

        Raises:
            GdbError: GDB refused it.
        """
        with self.held():
            what = f"the breakpoint at {where}"
            try:
                answer = self._ask(command)
            except GdbError as error:
                raise refused.planting(error, what, absent=refused.IN_SCOPE) from error
            if "No breakpoint number" in answer.console + answer.log:  # to GDB that is no error
                raise GdbError(f"{what} is no longer there", command=command, words=answer.log)

    def breakpoint_info(self, number: int) -> Mapping[str, Any]:
        """Return what GDB holds about a breakpoint: "times", "enabled", "addr".

        Raises:
            GdbError: it has none of that number.
        """
        answer = self._ask(f"-break-info {number}")
        for row in answer.payload["BreakpointTable"]["body"]:
            if row.get("number") == str(number):
                return dict(row)
        raise GdbError(f"GDB has no breakpoint {number}", command=f"-break-info {number}")

    def _catch(self, reason: str, symbols: Sequence[str], callback: Callback | None) -> Breakpoint:
        for symbol in symbols:
            try:
                refusal = partial(refused.planting, what=f"a breakpoint at {symbol}", absent=refused.NOT_YET)
                command = breakpoints.insert(symbol)
                return self._insert(command, symbol, refusal=refusal, callback=callback, reason=reason)
            except GdbError as error:
                if symbol == symbols[-1] or "not defined" not in error.words:
                    raise
        raise AssertionError("no symbols to catch")

    def _insert(
        self,
        command: str,
        where: str,
        *,
        refusal: Callable[[GdbError], GdbError],
        callback: Callback | None = None,
        reason: str = "",
    ) -> Breakpoint:
        self._need("a breakpoint", *STANDING, State.RUNNING)
        with self.held():
            try:
                answer = self._ask(command)
            except GdbError as error:
                raise refusal(error) from error
            made = breakpoints.made(answer.payload, where, self, callback=callback, reason=reason)
            self._breakpoints[made.number] = made
            pending = "pending" in answer.payload.get("bkpt", {})
            if (pending or self._has_modules) and not self._starting:
                self._await_modules()  # it may be in one that is loaded anew, elsewhere
            if self._identity is not None:
                never = self._identity.never_hit(self._payload, answer.payload.get("bkpt", {}), where)
                if never is not None:
                    self.delete(made)
                    raise never
        return made

    def _need_cpu(self, number: int, what: str) -> None:
        """Refuse a CPU that the guest does not have: GDB would wait for it for ever."""
        if self.state not in (State.STOPPED, State.RUNNING):
            return
        with self.held():
            numbers = [thread.id for thread in self.threads()]
        if number not in numbers:
            raise UsageError(
                f"{what}: the guest has no CPU that is thread {number} to GDB",
                hint=f"CPU 0 is thread 1, and the last one here thread {max(numbers)}",
            )

    def _await_modules(self) -> None:
        """Have each module's symbols loaded just before its init function runs; see kernel/module."""
        with contextlib.suppress(GdbError):  # a kernel without modules
            self._starting = -1
            answer = self._ask(breakpoints.insert("do_init_module"))
            made = breakpoints.made(answer.payload, "do_init_module", self, callback=self._module_starts)
            self._breakpoints[made.number] = made
            self._starting = made.number

    def _module_starts(self, _where: Stop) -> None:
        self.load_modules()
