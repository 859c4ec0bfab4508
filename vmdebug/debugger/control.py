"""Running and stopping the guest: GDB's commands for it, and the stops that come of them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, SupportsIndex, overload

from vmdebug.deadline import Deadline
from vmdebug.debugger import breakpoints, mi, refused, stop
from vmdebug.debugger.breakpoints import Breakpoint
from vmdebug.debugger.identity import Identity
from vmdebug.debugger.inspection import Inspection
from vmdebug.debugger.runstate import RunState, State
from vmdebug.debugger.stop import Stop, Thread
from vmdebug.debugger.transport import Transport
from vmdebug.errors import DeadlineError, GdbError, StateError

RUN_SECONDS = 60.0
"""How long the guest may run until it stops."""

STOP_SECONDS = 10.0
"""How long the guest may take to stop when it is told to."""

RETRY_SECONDS = 0.1
"""How long an attempt to interrupt the guest may take before the next one."""

SETTLE_SECONDS = 60.0
"""How long finding the kernel may take, and loading its symbols anew where KASLR has put it."""

_CONTINUE = "-exec-continue"

_ONWARD = "-exec-jump *$pc"
"""Continues, and hits a breakpoint where the guest stands: by `_CONTINUE` GDB steps over it."""

_FAR = (_CONTINUE, "-exec-until")

_STEPS = 5
"""How often a step is tried anew; of some 300 one does nothing. An instruction may also jump to itself."""


class Control(Inspection):
    """The run control of a `gdb.Gdb`.

    Args:
        transport: To GDB.
        state: The listener that the transport was started with.
    """

    def __init__(self, transport: Transport, state: RunState) -> None:
        super().__init__(transport, state)
        self._breakpoints: dict[int, Breakpoint] = {}
        self._interrupter: Callable[[], None] | None = None
        self._identity: Identity | None = None
        self._latest: Stop | None = None
        self._kept: Stop | None = None
        self._following = ""
        self._holding = 0
        self._bell = -1

    @overload
    def cont(self, *, timeout: float = ..., wait: Literal[True] = ...) -> Stop: ...

    @overload
    def cont(self, *, timeout: float = ..., wait: Literal[False]) -> None: ...

    def cont(self, *, timeout: float = RUN_SECONDS, wait: bool = True) -> Stop | None:
        """Let the guest run, until it stops or without waiting.

        Args:
            timeout: Seconds until it has to stop.
            wait: Whether to wait for the stop.

        Raises:
            StateError: it isn't stopped.
            GdbError: a breakpoint could not be planted.
            GuestDiedError: QEMU ended.
            DeadlineError: it still runs.
        """
        deadline = Deadline.after(timeout)
        self._resume("cont", _CONTINUE, deadline)
        return self._next_stop("cont", deadline) if wait else None

    def resume(self) -> None:
        """Set the guest running; raises as `cont` does."""
        self.cont(wait=False)

    def step(self, *, timeout: float = RUN_SECONDS) -> Stop:
        """Run to the next source line, into calls; raises as `cont` does.

        This, `next` and `finish` go with their task when it sleeps on the way and wakes on another CPU.
        """
        return self._step("step", "-exec-step", timeout)

    def next(self, *, timeout: float = RUN_SECONDS) -> Stop:
        """Run to the next source line, over calls; raises as `cont` does."""
        return self._step("next", "-exec-next", timeout)

    def stepi(self, *, timeout: float = RUN_SECONDS) -> Stop:
        """Run one instruction; raises as `cont` does."""
        return self._run("stepi", "-exec-step-instruction", timeout)

    def finish(self, *, timeout: float = RUN_SECONDS) -> Stop:
        """Run until the selected frame returns; `details["return-value"]` has what, as GDB prints it."""
        self._need("finish", State.STOPPED)
        return self._run("finish", _CONTINUE if self._follow("finish") else "-exec-finish", timeout)

    def until(self, where: str | SupportsIndex, *, timeout: float = RUN_SECONDS) -> Stop:
        """Run to a place on this CPU, or until the current frame returns; raises as `cont` does.

        A task that may sleep on the way wants a temporary breakpoint, which waits on all CPUs.

        Args:
            where: A symbol, file:line, `*expression`, or an address.
            timeout: Seconds until it has to stop.
        """
        return self._run("until", f"-exec-until {mi.bare(breakpoints.location(where))}", timeout)

    def wait_stop(self, *, timeout: float = RUN_SECONDS) -> Stop:
        """Return the next stop of the running guest, or the one that nobody has seen yet.

        Args:
            timeout: Seconds.

        Raises:
            StateError: it stands still, and its stop has been returned already.
            GuestDiedError: QEMU ended.
            DeadlineError: it still runs.
        """
        return self._next_stop("wait_stop", Deadline.after(timeout))

    def interrupt(self, *, timeout: float = STOP_SECONDS) -> Stop:
        """Stop the running guest; a stop that came first is returned instead.

        Args:
            timeout: Seconds.

        Raises:
            StateError: it stands still, and its stop has been returned already.
            GuestDiedError: QEMU ended.
            DeadlineError: it still runs.
        """
        deadline = Deadline.after(timeout)
        if self.state is State.RUNNING:
            self._interrupt(deadline)
        return self._next_stop("interrupt", deadline, onward=False)

    def fileno(self) -> int:
        """Return a descriptor that is readable once the guest has stopped, until `look`; -1 without a GDB.

        For who waits for something else that a stopped guest will not do.
        """
        if self._bell < 0 and self._run_state.state is not State.ENDED:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._run_state.on_stop = lambda: os.eventfd_write(self._bell, 1)
        return self._bell

    def look(self) -> None:
        """Heed a stop that came while somebody waits for something else.

        Callbacks are called, and where all have the guest go on, nothing more happens.

        Raises:
            StateError: the guest has stopped for good; the stop is kept for `wait_stop`.
        """
        if self._bell >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
        if self._holding:
            return  # it goes on by itself
        if self._kept is None and self.state is State.STOPPED and self._run_state.unseen:
            self._kept = self._own_stop("look", Deadline.after(STOP_SECONDS), onward=True)
        if self._kept is not None:
            raise StateError(
                f"the guest has stopped: {self._kept.reason} in {self._kept.frame}",
                hint="gdb.wait_stop() returns that stop; what was waited for needs a guest that runs",
            )

    @contextlib.contextmanager
    def held(self, *, timeout: float = STOP_SECONDS) -> Iterator[None]:
        """Hold the guest stopped for the block, and leave it as it was found.

        A stop of its own that comes in between stays, for `wait_stop`.

        Args:
            timeout: Seconds that it may take to stop, and again to go on.

        Raises:
            GuestDiedError: QEMU ended.
            DeadlineError: the guest did not stop.
        """
        running = self.state is State.RUNNING
        if running:
            self._holding += 1
            self._interrupt(Deadline.after(timeout))
        try:
            yield
        finally:
            self._holding -= running
            if running and self._run_state.interrupted:
                self._run_state.take_stop()
                self._resume("held", _CONTINUE, Deadline.after(timeout))

    def _run(self, call: str, command: str, timeout: float) -> Stop:
        deadline = Deadline.after(timeout)
        self._resume(call, command, deadline)
        return self._next_stop(call, deadline, onward=False)

    def _step(self, call: str, command: str, timeout: float) -> Stop:
        self._need(call, State.STOPPED)
        deadline = Deadline.after(timeout)
        while True:
            self._follow("next")
            self._resume(call, command, deadline)
            found = self._next_stop(call, deadline, onward=False)
            if found.details.get("reason") != stop.FOLLOWED:
                return found

    def _follow(self, how: Literal["finish", "next"]) -> bool:
        """Have the step that comes follow its task from CPU to CPU; see `gdbinit/vmd_follow.py`."""
        planted = bool(self._payload(f"-vmd-follow {how}")["planted"] == "1")
        self._following = how if planted else ""
        return planted

    def _came_back(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a stop that ends a step as MI would have told of it; every other one ends the step too."""
        following, self._following = self._following, ""
        answer = self._payload("-vmd-followed")
        if answer["came"] != "1" or (stop.hit(payload) or 0) > 0:
            return payload
        told = {"reason": stop.FINISHED if following == "finish" else stop.FOLLOWED}
        if "value" in answer:
            told |= {"gdb-result-var": answer["number"], "return-value": answer["value"]}
        return {key: value for key, value in payload.items() if key not in ("bkptno", "disp")} | told

    def _resume(self, call: str, command: str, deadline: Deadline) -> None:
        self._need(call, State.STOPPED)
        self._kept = None
        if command.startswith(_FAR) and self._run_to_kernel(call, deadline):
            if self._run_state.unseen:
                return  # something else stopped it on the way: that is this call's stop
            if command == _CONTINUE:
                command = _ONWARD
        self._go(call, command, deadline)

    def _run_to_kernel(self, call: str, deadline: Deadline) -> bool:
        """Run the guest to where its kernel is first mapped; return whether it has run.

        There the symbols are proven and placed, and breakpoints with them.
        """
        identity = self._identity
        if identity is None or not identity.open:
            return False
        if not identity.wait(self._payload, planned=bool(self._breakpoints)):
            return False
        try:
            self._go(call, _CONTINUE, deadline)
        except GdbError:
            identity.arrived(self._payload)
            raise
        try:
            self._wait_while_running(call, deadline)
        except DeadlineError as error:
            hint = "it still runs, and its kernel is not mapped: interrupt() stops it"
            raise DeadlineError(error.message, hint=hint) from error
        self._arrived(identity)
        return True

    def _arrived(self, identity: Identity) -> bool:
        """Settle which kernel runs, if the guest has stopped for that; return whether it has."""
        if not identity.arrived(self._payload):
            return False
        self._run_state.take_stop()
        identity.settle(self._payload)
        return True

    def _payload(self, command: str) -> Mapping[str, Any]:
        return self._execute(command, Deadline.after(SETTLE_SECONDS)).payload

    def _go(self, call: str, command: str, deadline: Deadline) -> None:
        if command == _CONTINUE and not self._off_breakpoint(call, deadline):
            return
        try:
            self._execute(command, deadline)
        except GdbError as error:
            raise refused.planting(error, call, absent=refused.NOT_YET) from error

    def _off_breakpoint(self, call: str, deadline: Deadline) -> bool:
        """Step off the breakpoint at which the guest stands; return whether it is to be continued from there.

        GDB would do it within its continuing, and would take for a hit what is none: QEMU's emulator may end
        a step before its instruction; see `gdbinit/vmd_tcg_double_hit.py`.
        """
        there, state = self._latest, self._run_state
        if there is None or there.breakpoint is None or there.frame.run != state.runs:
            return True
        if self._selected_thread() != there.thread:
            return True  # another CPU has been chosen, which alone may be meant to go on: scheduler-locking
        for _ in range(_STEPS):
            self._execute(f"-exec-step-instruction --thread {there.thread.id}", deadline)
            self._wait_while_running(call, deadline)
            if stop.pc(state.waiting) != there.frame.pc:
                break
        return stop.reason(state.waiting) == stop.STEPPED

    def _free_steps(self, deadline: Deadline) -> None:
        """Have QEMU forget steps that were cut short, before GDB lets go: they would halt the guest.

        The guest runs for moments; see `gdbinit/vmd_leftover_steps.py`.
        """
        while self._payload("-vmd-steps")["cpu"]:
            self._execute(_CONTINUE, deadline)
            self._interrupt(deadline)
            self._run_state.take_stop()

    def _interrupt(self, deadline: Deadline) -> None:
        """Stop the running guest, leaving its stop for whoever wants it.

        One attempt may be lost: GDB's, when it meets a guest that stands at a breakpoint whose
        condition is being looked at, and one from outside also before GDB's own resumption has
        reached QEMU. A second one never does harm: QEMU passes over it while the guest stands.
        """
        for attempt in itertools.count():
            if attempt % 2 and self._interrupter is not None:
                self._interrupter()
            else:
                # It may stop by itself at this very moment: then GDB has nothing to interrupt.
                with contextlib.suppress(GdbError):
                    self._execute("-exec-interrupt", deadline)
            with contextlib.suppress(DeadlineError):
                self._wait_while_running("interrupt", deadline.at_most(RETRY_SECONDS))
                return
            deadline.left("the guest to stop, in interrupt")

    def _wait_while_running(self, call: str, deadline: Deadline) -> None:
        state = self._run_state
        self._transport.wait(
            lambda: state.state is not State.RUNNING, deadline, f"the guest to stop, in {call}"
        )
        if not state.unseen:
            state.need(call, State.STOPPED)

    def _next_stop(self, call: str, deadline: Deadline, *, onward: bool = True) -> Stop:
        """Return the next stop that is the caller's.

        Args:
            call: Who waits, for errors.
            deadline: When to give up.
            onward: Whether the guest goes on where a callback has it go on.
        """
        while True:
            self._wait_for_stop(call, deadline)
            found, self._kept = self._kept, None
            found = found or self._own_stop(call, deadline, onward=onward)
            if found is not None:
                return found

    def _own_stop(self, call: str, deadline: Deadline, *, onward: bool) -> Stop | None:
        """Take the stop that nobody has taken; None: it is nobody's, and the guest goes on."""
        if self._identity is not None and self._identity.waiting and self._arrived(self._identity):
            # The call that ran it there has not waited for it.
            self._go(call, _ONWARD, deadline)
            return None
        found = self._taken_stop()
        wanted = self._heeded(found)
        if wanted is not None or not onward:
            return wanted or found
        if self._run_state.state is State.STOPPED:
            self._go(call, _CONTINUE, Deadline.after(STOP_SECONDS))
        return None

    def _wait_for_stop(self, call: str, deadline: Deadline) -> None:
        if self._run_state.unseen or self._kept is not None:
            return
        self._need(call, State.RUNNING)
        try:
            self._wait_while_running(call, deadline)
        except DeadlineError as error:
            raise DeadlineError(error.message, hint="it still runs: interrupt() stops it") from error

    def _heeded(self, found: Stop) -> Stop | None:
        """Call the callbacks of what was hit; return the stop that is the caller's, None to go on."""
        hit = self._all_hit(found)
        if not hit:
            return found
        wanted = None
        for each in hit:
            reason = each.reason or stop.reason(found.details)
            there = dataclasses.replace(found, breakpoint=each, reason=reason)
            if each.callback is None or each.callback(there) is True:
                wanted = wanted or there
        # A callback may have stepped on: then the guest stands at the stop that came of it.
        return self._latest if wanted is not None and self._latest is not found else wanted

    def _all_hit(self, found: Stop) -> tuple[Breakpoint, ...]:
        """Return all breakpoints that were hit at once; MI's record names the first alone."""
        if found.breakpoint is None:
            return ()
        if all(each.callback is None for each in self._breakpoints.values()):
            return (found.breakpoint,)
        numbers = str(self._payload("-vmd-hit")["numbers"]).split()
        return tuple(self._hit(int(number)) for number in numbers) or (found.breakpoint,)

    def _taken_stop(self) -> Stop:
        try:
            payload = self._run_state.take_stop()
        except GdbError as error:
            raise refused.planting(error, "running the guest") from error
        if payload is None:
            raise StateError("the guest has stopped, and another thread's call has returned that stop")
        if self._identity is not None and self._identity.open and self._identity.settle(self._payload):
            # Its frame was written before the symbols were where the kernel is.
            payload = {**payload, **self._payload("-stack-info-frame")}
        if self._following:
            payload = self._came_back(payload)
        self._latest = self._stop(payload)
        return self._latest

    def _stop(self, payload: Mapping[str, Any]) -> Stop:
        number = stop.hit(payload)
        hit = None if number is None else self._hit(number)
        thread = Thread(int(payload.get("thread-id", 1)))
        return Stop(
            reason=(hit.reason if hit is not None else "") or stop.reason(payload),
            thread=thread,
            frame=self._frame(payload.get("frame", {}), thread),
            breakpoint=hit,
            signal=str(payload.get("signal-name", "")),
            details=payload,
            _inspector=self,
        )

    def _hit(self, number: int) -> Breakpoint:
        # Set behind our back, by a script's or a person's command, it is one all the same.
        return self._breakpoints.get(number) or Breakpoint(number, "")
