"""Running and stopping the guest.

GDB runs it in all-stop mode with `mi-async`: one stop stops every CPU, and GDB answers while the guest runs,
although most commands that touch the guest need it stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import SupportsIndex

from vmdebug.deadline import Deadline
from vmdebug.debugger import breakpoint as mi_breakpoint
from vmdebug.debugger import gdb_errors, mi, stop
from vmdebug.debugger.breakpoint_table import BreakpointTable
from vmdebug.debugger.connection import Connection
from vmdebug.debugger.following import Following
from vmdebug.debugger.identity import SETTLE_SECONDS, Identity
from vmdebug.debugger.inspection import Inspection
from vmdebug.debugger.past import BACK_SECONDS, Past
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import Stop
from vmdebug.debugger.stops import Stops
from vmdebug.errors import DeadlineError, GdbError, StateError

RUN_SECONDS = 60.0
"""How long the guest may run until it stops."""

STOP_SECONDS = 10.0
"""How long the guest may take to stop."""

RETRY_SECONDS = 0.1
"""How long an attempt to interrupt the guest may take before the next one."""

HALT_AFTER = 5
"""How many attempts are lost before the next hit of a trace is to stop the guest."""

_CONTINUE = "-exec-continue"

_ONWARD = "-exec-jump *$pc"
"""Continues, and hits a breakpoint at the present PC; `_CONTINUE` steps over it."""

_FAR = (_CONTINUE, "-exec-until")

_STEPS = 5
"""Number of attempts of `_off_breakpoint`: about one step of 300 executes nothing, and an instruction may
jump to itself."""


class RunControl:
    """Runs and stops the guest.

    Args:
        connection: The connection to GDB.
        table: The breakpoints that were set.
        identity: Compares the symbols with the guest's kernel, if it is not done yet.
        inspection: Reads frames.
    """

    def __init__(
        self, connection: Connection, table: BreakpointTable, identity: Identity, inspection: Inspection
    ) -> None:
        self._connection = connection
        self._table = table
        self._identity = identity
        self._inspection = inspection
        self._following = Following(connection.fetch)
        self._stops = Stops(connection, table, identity, inspection, self._following)
        self.past = Past(connection, self._stops, inspection)
        self._interrupter: Callable[[], None] | None = None
        self._kept: Stop | None = None
        self._holding = 0
        self._eventfd = -1

    def begin(self, interrupter: Callable[[], None] | None) -> None:
        """Prepare for a guest that GDB connects to; see `Gdb.connect`."""
        self._interrupter = interrupter

    def cont(self, *, timeout: float = RUN_SECONDS, wait: bool = True) -> Stop | None:
        """Resume the guest and, with `wait`, return its next stop; see `Gdb.cont`."""
        deadline = Deadline.after(timeout)
        self._resume("cont", _CONTINUE, deadline)
        return self._next_stop("cont", deadline) if wait else None

    def back(self, *, timeout: float = BACK_SECONDS) -> Stop:
        """Go back to the last hit of a breakpoint or watchpoint that is enabled; the guest must be a replay.

        At a watchpoint, the guest is before the write. If there is no hit, it is where the recording begins,
        and the stop's reason is `BEGIN`. Callbacks of breakpoints are not called.

        Args:
            timeout: Seconds to search.

        Raises:
            StateError: the guest is not stopped.
            GdbError: the guest is no replay, or no breakpoint is set.
            DeadlineError: the search took too long.
        """
        return self.past.go("continue", "back", timeout)

    def resume(self) -> None:
        """Resume the guest without waiting; raises as `cont` does."""
        self.cont(wait=False)

    def step(self, *, back: bool = False, timeout: float = RUN_SECONDS) -> Stop:
        """Run to the next source line, into calls; raises as `cont` does.

        `step`, `next` and `finish` follow their task if it sleeps and wakes on another CPU.

        Args:
            back: Whether to go back instead, to where the line before began; the guest must be a replay.
            timeout: Seconds to wait for the stop.
        """
        if back:
            return self.past.go("step", "step", timeout)
        return self._step("step", "-exec-step", timeout)

    def next(self, *, back: bool = False, timeout: float = RUN_SECONDS) -> Stop:
        """Run to the next source line, over calls; with `back`, see `step`; raises as `cont` does."""
        if back:
            return self.past.go("next", "next", timeout)
        return self._step("next", "-exec-next", timeout)

    def stepi(self, *, back: bool = False, timeout: float = RUN_SECONDS) -> Stop:
        """Run one instruction; with `back`, undo one; raises as `cont` does."""
        if back:
            return self.past.go("stepi", "stepi", timeout)
        return self._run("stepi", "-exec-step-instruction", timeout)

    def finish(self, *, back: bool = False, timeout: float = RUN_SECONDS) -> Stop:
        """Run until the selected frame returns; `details["return-value"]` has the value as GDB prints it.

        With `back`, go back to where its function was called; see `step`.
        """
        if back:
            return self.past.go("finish", "finish", timeout)
        self._connection.need("finish", State.STOPPED)
        followed = self._following.begin("finish")
        return self._run("finish", _CONTINUE if followed else "-exec-finish", timeout)

    def until(self, where: str | SupportsIndex, *, timeout: float = RUN_SECONDS) -> Stop:
        """Run to a place on this CPU, or until the selected frame returns; raises as `cont` does.

        If the task may sleep, use a temporary breakpoint instead, which stops on every CPU.

        Args:
            where: A symbol, file:line, `*expression`, or an address.
            timeout: Seconds to wait for the stop.
        """
        return self._run("until", f"-exec-until {mi.bare(mi_breakpoint.location(where))}", timeout)

    def wait_stop(self, *, timeout: float = RUN_SECONDS) -> Stop:
        """Return the next stop of the running guest, or the last stop if no call has returned it yet.

        Args:
            timeout: Seconds to wait.

        Raises:
            StateError: the guest is stopped, and a call has already returned that stop.
            GuestDiedError: the guest or QEMU ended.
            DeadlineError: the guest still runs.
        """
        return self._next_stop("wait_stop", Deadline.after(timeout))

    def interrupt(self, *, timeout: float = STOP_SECONDS) -> Stop:
        """Stop the running guest, and return the stop; it may have another reason, such as a breakpoint.

        Args:
            timeout: Seconds to wait.

        Raises:
            StateError: the guest is stopped, and a call has already returned that stop.
            GuestDiedError: the guest or QEMU ended.
            DeadlineError: the guest still runs.
        """
        deadline = Deadline.after(timeout)
        if self._connection.state is State.RUNNING:
            self._interrupt(deadline)
        return self._next_stop("interrupt", deadline, onward=False)

    def fileno(self) -> int:
        """Return a descriptor that is readable from the next stop until `check_stop`; -1 if GDB has ended.

        It is for callers that wait for a running guest.
        """
        if self._eventfd < 0 and self._connection.run.state is not State.ENDED:
            self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._connection.run.at_stop(lambda: os.eventfd_write(self._eventfd, 1))
        return self._eventfd

    def runs(self) -> bool:
        """Whether GDB lets the guest run; a hit that continues by itself is no stop."""
        return self._connection.state is State.RUNNING

    def check_stop(self) -> None:
        """Handle a stop that happens while the caller waits for something else.

        It calls the callbacks. If all of them let the guest continue, it returns.

        Raises:
            StateError: the guest stays stopped; `wait_stop` will return that stop.
        """
        if self._eventfd >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._eventfd)
        if self._holding:
            return  # `held` will resume it
        if self._kept is None and self._connection.state is State.STOPPED and self._connection.run.unseen:
            self._kept = self._own_stop("check_stop", Deadline.after(STOP_SECONDS), onward=True)
        if self._kept is not None:
            raise StateError(
                f"the guest has stopped: {self._kept.reason} in {self._kept.frame}",
                hint="gdb.wait_stop() returns that stop; this call needs a running guest",
            )

    @contextlib.contextmanager
    def held(self, *, timeout: float = STOP_SECONDS) -> Iterator[None]:
        """Stop the guest for the block, and resume it afterwards if it ran before.

        If it stops for another reason meanwhile, it stays stopped, and `wait_stop` returns that stop.

        Args:
            timeout: Seconds to wait for the stop, and again to resume.

        Raises:
            GuestDiedError: the guest or QEMU ended.
            DeadlineError: the guest did not stop.
        """
        running = self._connection.state is State.RUNNING
        self._holding += running
        try:
            if running:
                self._interrupt(Deadline.after(timeout))
            yield
        finally:
            self._holding -= running
            if running and self._connection.run.interrupted:
                self._connection.run.take_stop()
                self._resume("held", _CONTINUE, Deadline.after(timeout))

    def take(self) -> Stop:
        """Return the stop that no call has returned yet; see `Stops.take`."""
        return self._stops.take()

    def quiesce(self, deadline: Deadline) -> None:
        """Stop the guest for a detach, and complete single steps that were cut short.

        Without GDB, they would stop the guest again. For this the guest runs for short moments; see
        `gdbinit/vmd_leftover_steps.py`.
        """
        if self._connection.state is State.RUNNING:
            self._interrupt(deadline)
        while self._connection.fetch("-vmd-steps", SETTLE_SECONDS)["cpu"]:
            self._connection.execute(_CONTINUE, deadline)
            self._interrupt(deadline)
            self._connection.run.take_stop()

    def close(self) -> None:
        """Close the descriptor of `fileno`; a second call does nothing."""
        eventfd, self._eventfd = self._eventfd, -1
        if eventfd >= 0:
            os.close(eventfd)

    def _run(self, call: str, command: str, timeout: float) -> Stop:
        deadline = Deadline.after(timeout)
        self._resume(call, command, deadline)
        return self._next_stop(call, deadline, onward=False)

    def _step(self, call: str, command: str, timeout: float) -> Stop:
        self._connection.need(call, State.STOPPED)
        deadline = Deadline.after(timeout)
        while True:
            self._following.begin("next")
            self._resume(call, command, deadline)
            found = self._next_stop(call, deadline, onward=False)
            if found.details.get("reason") != stop.FOLLOWED:
                return found

    def _resume(self, call: str, command: str, deadline: Deadline) -> None:
        self._connection.need(call, State.STOPPED)
        self._kept = None
        if command.startswith(_FAR) and self._run_to_kernel(call, deadline):
            if self._connection.run.unseen:
                return  # it has stopped for another reason; the call returns that stop
            if command == _CONTINUE:
                command = _ONWARD
        self._go(call, command, deadline)

    def _run_to_kernel(self, call: str, deadline: Deadline) -> bool:
        """Run the guest until its kernel is mapped, and return whether it has run.

        Then compare the kernel with the symbols, and move symbols and breakpoints to its address.
        """
        identity = self._identity
        if not identity.open or not identity.wait(planned=bool(self._table)):
            return False
        try:
            self._go(call, _CONTINUE, deadline)
        except GdbError:
            identity.arrived()
            raise
        try:
            self._wait_while_running(call, deadline)
        except DeadlineError as error:
            hint = "it still runs, and has not mapped its kernel: interrupt() stops it"
            raise DeadlineError(error.message, hint=hint) from error
        self._arrived()
        return True

    def _arrived(self) -> bool:
        """If the guest has stopped because its kernel is mapped, compare that; return whether it has."""
        if not self._identity.arrived():
            return False
        self._connection.run.take_stop()
        self._identity.settle()
        return True

    def _go(self, call: str, command: str, deadline: Deadline) -> None:
        if command == _CONTINUE and not self._off_breakpoint(call, deadline):
            return
        try:
            self._connection.execute(command, deadline)
        except GdbError as error:
            raise gdb_errors.breakpoint_error(error, call, unknown=gdb_errors.UNKNOWN_PLACE_NOW) from error

    def _off_breakpoint(self, call: str, deadline: Deadline) -> bool:
        """Step off the breakpoint at which the guest is stopped; return whether to continue afterwards.

        When GDB itself does this as part of `continue`, it may report a second hit, because under TCG a
        single step may end before it executes its instruction. See `gdbinit/vmd_tcg_double_hit.py`.
        """
        there, run = self._stops.latest, self._connection.run
        if there is None or there.breakpoint is None or there.frame.run != run.runs:
            return True
        if self._inspection.selected() != there.thread:
            return True  # with scheduler-locking on, only the selected CPU may run
        here = self._connection.fetch(f"-stack-info-frame --thread {there.thread.id} --frame 0")
        if stop.pc(here) != there.frame.pc:
            return True  # moved, by GDB's `return` for example; KVM then loses the step and blocks interrupts
        for _ in range(_STEPS):
            self._connection.execute(f"-exec-step-instruction --thread {there.thread.id}", deadline)
            self._wait_while_running(call, deadline)
            if stop.pc(run.waiting) != there.frame.pc:
                break
        return stop.reason(run.waiting) == stop.STEPPED

    def _interrupt(self, deadline: Deadline) -> None:
        """Stop the running guest; the caller then takes its stop.

        A single attempt may be lost: GDB's own, while GDB evaluates the condition of a breakpoint; the one
        from outside, before GDB's resumption has reached QEMU. Repeating it does no harm, because QEMU
        ignores it while the guest is stopped. On a busy machine, all may be lost while a trace has one hit
        after the other; then the next hit stops the guest.
        """
        try:
            for attempt in itertools.count():
                deadline.left("the guest to stop, in interrupt")
                if attempt == HALT_AFTER:
                    self._halt_traces("1", deadline)
                if attempt % 2 and self._interrupter is not None:
                    self._interrupter()
                else:
                    # If the guest stops by itself at this moment, GDB has nothing to interrupt.
                    with contextlib.suppress(GdbError):
                        self._connection.execute("-exec-interrupt", deadline)
                with contextlib.suppress(DeadlineError):
                    self._wait_while_running("interrupt", deadline.at_most(RETRY_SECONDS))
                    return
        finally:
            if attempt >= HALT_AFTER:
                self._halt_traces("0", deadline)

    def _halt_traces(self, wanted: str, deadline: Deadline) -> None:
        # GDB may report an error for a command that it has run, because the guest resumes from a hit.
        with contextlib.suppress(GdbError):
            self._connection.execute(f"-vmd-trace-halt {wanted}", deadline)

    def _wait_while_running(self, call: str, deadline: Deadline) -> None:
        run = self._connection.run
        self._connection.wait(
            lambda: run.state is not State.RUNNING, deadline, f"the guest to stop, in {call}"
        )
        if not run.unseen:
            run.need(call, State.STOPPED)

    def _next_stop(self, call: str, deadline: Deadline, *, onward: bool = True) -> Stop:
        """Return the next stop for the caller.

        Args:
            call: The caller, for errors.
            deadline: When to give up.
            onward: Whether the guest continues if the callbacks let it.
        """
        while True:
            self._wait_for_stop(call, deadline)
            found, self._kept = self._kept, None
            found = found or self._own_stop(call, deadline, onward=onward)
            if found is not None:
                return found

    def _own_stop(self, call: str, deadline: Deadline, *, onward: bool) -> Stop | None:
        """Take the stop that no call has returned; return None if the guest continues from it."""
        if self._identity.waiting and self._arrived():
            # The call that resumed the guest did not wait until its kernel was mapped.
            self._go(call, _ONWARD, deadline)
            return None
        found = self._stops.take()
        wanted = self._stops.call_callbacks(found)
        if wanted is not None or not onward:
            return wanted or found
        if self._connection.run.state is State.STOPPED:
            self._go(call, _CONTINUE, Deadline.after(STOP_SECONDS))
        return None

    def _wait_for_stop(self, call: str, deadline: Deadline) -> None:
        if self._connection.run.unseen or self._kept is not None:
            return
        self._connection.need(call, State.RUNNING)
        try:
            self._wait_while_running(call, deadline)
        except DeadlineError as error:
            raise DeadlineError(error.message, hint="it still runs: interrupt() stops it") from error
