"""Breakpoints, watchpoints, traces: what is planted in a guest, running or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vmdebug.debugger import breakpoints, refused, trace
from vmdebug.debugger.breakpoints import Breakpoint
from vmdebug.debugger.control import Control
from vmdebug.debugger.inspection import STANDING
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import Thread
from vmdebug.errors import GdbError


class Planting(Control):
    """What a `gdb.Gdb` plants; a running guest is stopped for it and goes on."""

    def breakpoint(
        self,
        where: str | int,
        *,
        when: str = "",
        temporary: bool = False,
        hardware: bool = False,
        ignore: int = 0,
        thread: Thread | int | None = None,
        pending: bool = False,
    ) -> Breakpoint:
        """Set a breakpoint; a running guest is stopped for it and goes on.

        Args:
            where: A symbol, file:line, `*expression`, or an address.
            when: Condition, in the language of the place.
            temporary: Whether it goes with its first stop.
            hardware: Whether it takes one of the CPU's debug registers; under KVM the only kind that works
                before the kernel has mapped itself.
            ignore: How many hits to pass over.
            thread: The one CPU that it is for; a number is GDB's, CPU 0 is 1.
            pending: Whether it may name what isn't there yet.

        Raises:
            GdbError: GDB refused it: no such symbol, a condition that cannot be evaluated.
        """
        place = breakpoints.location(where)
        number = thread.id if isinstance(thread, Thread) else thread
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
        )

    def watchpoint(
        self, expression: str, *, access: Literal["write", "read", "access"] = "write"
    ) -> Breakpoint:
        """Stop when a value changes, or memory is read; a running guest is stopped for it and goes on.

        Args:
            expression: What is watched: a variable, `*(int *)0x…`.
            access: "write" stops at changes, "read" and "access" at reads and at both.

        Raises:
            GdbError: GDB refused it.
        """
        return self._insert(breakpoints.watch(expression, access=access), expression)

    def trace(
        self,
        where: str | Sequence[trace.Probe],
        *,
        args: Sequence[str] = (),
        when: str = "",
        count: int | None = None,
        backtrace: bool = False,
        ret: bool = False,
    ) -> trace.Trace:
        """Return a trace, collected inside GDB: a sequence of hits, and a context manager.

        The guest runs inside the block and is left as it was found.

        Args:
            where: A symbol, file:line, `*expression`; or several with their own expressions.
            args: Expressions to note at each hit, in the language of the place.
            when: Condition, in the same language.
            count: How many hits; later ones are passed over.
            backtrace: Whether to note the frames.
            ret: Whether to note what the function returns, which takes a second stop a hit.

        Raises:
            GdbError: by the block's begin: there is no such place.
            StateError: likewise: GDB isn't attached.
        """
        probes = (trace.Probe(where, tuple(args)),) if isinstance(where, str) else tuple(where)
        wanted = trace.Wanted(probes, when, count, backtrace, ret)
        return trace.Trace(self, self._tell, self._breakpoints, wanted)

    def delete(self, breakpoint: Breakpoint) -> None:  # noqa: A002 - the word of the field
        """Take a breakpoint out; nothing happens when GDB has it no more, or has no guest any more."""
        if self.state is State.ENDED or self._breakpoints.pop(breakpoint.number, None) is None:
            return
        with self.held():
            self._ask(f"-break-delete {breakpoint.number}")

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

    def _insert(self, command: str, where: str) -> Breakpoint:
        self._need("a breakpoint", *STANDING, State.RUNNING)
        with self.held():
            try:
                answer = self._ask(command)
            except GdbError as error:
                raise refused.planting(error, f"a breakpoint at {where}") from error
            made = breakpoints.made(answer.payload, where, self)
            self._breakpoints[made.number] = made
            if self._identity is not None:
                never = self._identity.never_hit(self._payload, answer.payload.get("bkpt", {}), where)
                if never is not None:
                    self.delete(made)
                    raise never
        return made

    def _tell(self, command: str) -> Mapping[str, Any]:
        try:
            return self._ask(command).payload
        except GdbError as error:
            raise refused.planting(error, "a trace") from error
