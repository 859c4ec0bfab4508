"""Questions to a GDB whose guest stands still: values, CPUs, frames; and whatever a person would type."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vmdebug.deadline import Deadline
from vmdebug.debugger import mi, refused, stop
from vmdebug.debugger.memory import COMMAND_SECONDS, Memory, Snapshot
from vmdebug.debugger.runstate import RunState, State
from vmdebug.debugger.stop import Backtrace, Frame, Thread
from vmdebug.debugger.transport import Answer, Transport
from vmdebug.debugger.value import Value
from vmdebug.errors import GdbError, UsageError

STANDING = (State.STOPPED, State.UNCONNECTED, State.DETACHED)
"""Where GDB can look at things: the guest does not run, or there is none."""


_NOUNS = {"argument": ("an", "argument"), "local": ("a", "local variable")}


class Inspection:
    """What a `gdb.Gdb` can be asked; the words to GDB itself are here.

    Args:
        transport: To GDB.
        state: The listener that the transport was started with.
    """

    def __init__(self, transport: Transport, state: RunState) -> None:
        self._transport = transport
        self._run_state = state
        self._memory = Memory(self._fetch)

    @property
    def state(self) -> State:
        """Where GDB and the guest stand now."""
        if self._run_state.state is State.RUNNING:
            self._transport.refresh()
        return self._run_state.state

    @property
    def stopped(self) -> bool:
        """Whether GDB holds the guest stopped."""
        return self.state is State.STOPPED

    def evaluate(
        self, expression: str, *, frame: Frame | None = None, timeout: float = COMMAND_SECONDS
    ) -> Value:
        """Return the value of an expression, with its type, in one round trip whatever its size.

        Args:
            expression: In the language of the frame, with GDB's extensions.
            frame: The frame to evaluate it in; None is the selected frame.
            timeout: Seconds.

        Raises:
            GdbError: GDB cannot evaluate it.
            StateError: the guest runs, or has run since the frame was taken.
        """
        if frame is None:
            self._need("evaluate", *STANDING)
        context = "" if frame is None else self._context(frame, expression)
        return Value(self._memory, self._memory.evaluate(expression, context, timeout), expression)

    def variable(self, kind: Literal["argument", "local"], name: str, frame: Frame) -> Value:
        """Return an argument or a local variable of a frame.

        Raises:
            UsageError: the frame has none of that name; the hint lists those that it has.
            GdbError: GDB cannot read it.
            StateError: the guest has run since the frame was taken.
        """
        found = self._memory.variable(kind, name, self._context(frame, name))
        if isinstance(found, Snapshot):
            return Value(self._memory, found, name)
        article, noun = _NOUNS[kind]
        has = f"its {noun}s: {', '.join(found)}" if found else f"it has no {noun}s that GDB knows"
        raise UsageError(
            f"`{name}` is not {article} {noun} of {frame.function or hex(frame.pc)}",
            hint=f"{has}; frame.evaluate() takes any expression",
        )

    def per_cpu(self, variable: str, cpu: int) -> Value:
        """Return a CPU's copy of a per-CPU variable; the kernel's `per_cpu(var, cpu)`.

        Args:
            variable: Its name, or a member of it: "runqueues", "runqueues.nr_running".
            cpu: The CPU, as the kernel counts. A kernel without SMP has CPU 0 alone, and one copy.

        Raises:
            GdbError: there is no such variable, or no such CPU.
            StateError: the guest runs.
        """
        self._need("per_cpu", *STANDING)
        name = f"per_cpu({variable}, {cpu})"
        return Value(self._memory, self._memory.per_cpu(variable, cpu), name)

    def console(self, command: str, *, timeout: float = COMMAND_SECONDS) -> str:
        """Have GDB carry out a command as a person types it; return what it printed.

        Args:
            command: One line: "info registers rip".
            timeout: Seconds.

        Raises:
            GdbError: GDB refused it.
        """
        wrapped = f"-interpreter-exec console {mi.quote(command)}"
        try:
            return self._execute(wrapped, Deadline.after(timeout)).console
        except GdbError as error:
            raise refused.reworded(error, f"GDB refused `{command}`") from error

    def replaced(self) -> None:
        """Take note that a stopped guest has been replaced by another state of itself.

        GDB forgets what it has read, and frames of before are no longer there. Breakpoints stay set.

        Raises:
            StateError: the guest runs.
        """
        self._need("replaced", State.STOPPED)
        for cache in ("register-cache", "dcache"):
            self.console(f"maint flush {cache}")
        self._run_state.runs += 1

    def threads(self) -> tuple[Thread, ...]:
        """Return the guest's CPUs.

        Raises:
            StateError: the guest runs.
        """
        self._need("threads", State.STOPPED)
        return stop.threads(self._ask("-thread-info").payload)

    def backtrace(self, thread: Thread | None = None, *, limit: int | None = None) -> Backtrace:
        """Return a CPU's frames, the innermost first.

        Args:
            thread: Which CPU; None is the selected one.
            limit: How many frames at most.

        Raises:
            StateError: the guest runs.
            GdbError: the stack cannot be read.
        """
        self._need("backtrace", State.STOPPED)
        of = thread or self._selected_thread()
        window = "" if limit is None else f" 0 {limit - 1}"
        answer = self._ask(f"-stack-list-frames --thread {of.id}{window}")
        frames = [self._frame(entry, of) for entry in answer.payload["stack"]]
        if len(frames) > 1 and not frames[-1].pc:
            del frames[-1]  # where the kernel's stack ends; see `gdbinit/vmd_exceptions.py`
        return Backtrace(frames)

    def backtraces(
        self, *, limit: int = 64, modules: Path | None = None, timeout: float = COMMAND_SECONDS
    ) -> str:
        """Return what each CPU runs and its frames, as `vmd-bt-all` prints them.

        Args:
            limit: How many frames a CPU at most.
            modules: Directory with the kernel's modules, whose symbols are loaded; None goes without.
            timeout: Seconds.

        Raises:
            StateError: the guest runs.
            GdbError: a stack cannot be read.
        """
        self._need("backtraces", State.STOPPED)
        words = "" if modules is None else f" {mi.quote(str(modules))}"
        return self._text(f"-vmd-backtraces {limit}{words}", timeout)

    def dmesg(self, *, limit: int = 1000, timeout: float = COMMAND_SECONDS) -> str:
        """Return the kernel's log out of guest memory, as `dmesg` prints it.

        Args:
            limit: How many lines at most, the last ones.
            timeout: Seconds.

        Raises:
            StateError: the guest runs.
            GdbError: it cannot be read, or the vmlinux does not describe it.
        """
        self._need("dmesg", State.STOPPED)
        return self._text(f"-vmd-dmesg {limit}", timeout)

    def exchanges(self) -> str:
        """Return the last that GDB was told and answered, a line each, in GDB/MI; long ones are cut."""
        return "\n".join(self._transport.exchanges())

    def frame(self) -> Frame:
        """Return the selected frame.

        Raises:
            StateError: the guest runs.
        """
        self._need("frame", State.STOPPED)
        return self._frame(self._ask("-stack-info-frame").payload["frame"], self._selected_thread())

    def select(self, thread: Thread | int | None = None, frame: Frame | int | None = None) -> Frame:
        """Select a CPU, a frame, or both, for what is evaluated without a frame.

        Args:
            thread: The CPU; a number is GDB's, CPU 0 is 1. None is the frame's, or the selected one.
            frame: The frame or its level; None is the innermost of `thread`.

        Returns:
            The frame that is selected now.

        Raises:
            StateError: the guest runs.
            GdbError: there is no such CPU or frame.
        """
        self._need("select", State.STOPPED)
        if thread is None and isinstance(frame, Frame):
            thread = frame.thread
        if thread is not None:
            self._ask(f"-thread-select {thread.id if isinstance(thread, Thread) else thread}")
        level = frame.level if isinstance(frame, Frame) else frame
        if level is not None:
            self._ask(f"-stack-select-frame {level}")
        selected = self.frame()
        if level not in (None, selected.level):  # GDB takes the outermost instead
            raise GdbError(f"there is no frame {level}: the outermost is {selected.level}")
        return selected

    def _context(self, frame: Frame, what: str) -> str:
        """Return the MI options that select a frame."""
        self._run_state.need_run(frame.run, f"`{what}` in {frame.function or hex(frame.pc)}")
        return f" --thread {frame.thread.id} --frame {frame.level}"

    def _text(self, command: str, timeout: float) -> str:
        packed = self._execute(command, Deadline.after(timeout)).payload["text"]
        return base64.b64decode(packed).decode(errors="replace")

    def _selected_thread(self) -> Thread:
        return Thread(int(self._ask("-data-evaluate-expression $_thread").payload["value"]))

    def _frame(self, payload: Mapping[str, Any], thread: Thread) -> Frame:
        return stop.frame(payload, thread, run=self._run_state.runs, inspector=self)

    def _ask(self, command: str) -> Answer:
        return self._execute(command, Deadline.after(COMMAND_SECONDS))

    def _fetch(self, command: str, timeout: float) -> Mapping[str, Any]:
        return self._execute(command, Deadline.after(timeout)).payload

    def _execute(self, command: str, deadline: Deadline) -> Answer:
        """Have GDB carry out an MI command.

        Raises:
            GuestDiedError: GDB lost the guest over it.
            GdbError: GDB refused it, or has ended.
            DeadlineError: GDB did not answer.
        """
        before = self._run_state.state
        try:
            return self._transport.execute(command, deadline)
        except GdbError as error:
            if self._run_state.state is State.GONE and before is not State.GONE:
                raise self._run_state.died(command) from error
            raise

    def _need(self, call: str, *allowed: State) -> None:
        """Raise unless the state, as it is now, is one of `allowed`; see `RunState.need`."""
        if self._run_state.state not in allowed:
            self._transport.refresh()
            self._run_state.need(call, *allowed)
