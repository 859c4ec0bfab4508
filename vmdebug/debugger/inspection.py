"""Reads values, CPUs and frames of a stopped guest, and executes GDB commands."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vmdebug.debugger import gdb_errors, mi, stop
from vmdebug.debugger.connection import NOT_RUNNING, Connection
from vmdebug.debugger.memory import COMMAND_SECONDS, Memory, ObjectCopy
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import Backtrace, Frame, Thread
from vmdebug.debugger.value import Value
from vmdebug.errors import GdbError, UsageError

_NOUNS = {"argument": ("an", "argument"), "local": ("a", "local variable")}


class Inspection:
    """Reads the guest and its kernel.

    Args:
        connection: The connection to GDB.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._memory = Memory(connection.fetch)

    def evaluate(
        self, expression: str, *, frame: Frame | None = None, timeout: float = COMMAND_SECONDS
    ) -> Value:
        """Return the value of an expression, with its type, in one round trip.

        Args:
            expression: In the language of the frame, with GDB's extensions.
            frame: The frame to evaluate it in; None: the selected frame.
            timeout: Seconds for GDB to answer.

        Raises:
            GdbError: GDB cannot evaluate it.
            StateError: the guest runs, or has run since the frame was read.
            DeadlineError: GDB did not answer.
        """
        if frame is None:
            self._connection.need("evaluate", *NOT_RUNNING)
        context = "" if frame is None else self._context(frame, expression)
        return Value(self._memory, self._memory.evaluate(expression, context, timeout), expression)

    def printed(
        self, expression: str, *, frame: Frame | None = None, timeout: float = COMMAND_SECONDS
    ) -> str:
        """Return the value of an expression as GDB prints it.

        Args:
            expression: In the language of the frame, with GDB's extensions.
            frame: The frame to evaluate it in; None: the selected frame.
            timeout: Seconds for GDB to answer.

        Raises:
            GdbError: GDB cannot evaluate it.
            StateError: the guest runs, or has run since the frame was read.
            DeadlineError: GDB did not answer.
        """
        if frame is None:
            self._connection.need("printed", *NOT_RUNNING)
        context = "" if frame is None else self._context(frame, expression)
        command = f"-data-evaluate-expression{context} {mi.quote(expression)}"
        try:
            return str(self._connection.fetch(command, timeout)["value"])
        except GdbError as error:
            raise gdb_errors.renamed(error, f"`{expression}` cannot be evaluated") from error

    def variable(self, kind: Literal["argument", "local"], name: str, frame: Frame, timeout: float) -> Value:
        """Return an argument or a local variable of a frame; see `Frame.arg`.

        Raises:
            UsageError: the frame has no such variable; the hint lists its variables.
            GdbError: GDB cannot read it.
            StateError: the guest has run since the frame was read.
        """
        found = self._memory.variable(kind, name, self._context(frame, name), timeout)
        if isinstance(found, ObjectCopy):
            return Value(self._memory, found, name)
        article, noun = _NOUNS[kind]
        has = f"its {noun}s: {', '.join(found)}" if found else f"it has no {noun}s that GDB knows"
        raise UsageError(
            f"`{name}` is not {article} {noun} of {frame.function or hex(frame.pc)}",
            hint=f"{has}; frame.evaluate() takes any expression",
        )

    def per_cpu(self, variable: str, cpu: int, *, timeout: float = COMMAND_SECONDS) -> Value:
        """Return a CPU's copy of a per-CPU variable, like the kernel's `per_cpu(var, cpu)`.

        Args:
            variable: Its name, or a member of it: "runqueues", "runqueues.nr_running".
            cpu: The kernel's number of the CPU. A kernel without SMP has CPU 0 and one copy.
            timeout: Seconds for GDB to answer.

        Raises:
            GdbError: there is no such variable, or no such CPU.
            StateError: the guest runs.
            DeadlineError: GDB did not answer.
        """
        self._connection.need("per_cpu", *NOT_RUNNING)
        name = f"per_cpu({variable}, {cpu})"
        return Value(self._memory, self._memory.per_cpu(variable, cpu, timeout), name)

    def console(self, command: str, *, timeout: float = COMMAND_SECONDS) -> str:
        """Execute a GDB command, and return its output.

        Args:
            command: One line: "info registers rip".
            timeout: Seconds for GDB to answer.

        Raises:
            GdbError: GDB refused it.
            DeadlineError: GDB did not answer.
        """
        wrapped = f"-interpreter-exec console {mi.quote(command)}"
        try:
            return self._connection.ask(wrapped, timeout).console
        except GdbError as error:
            raise gdb_errors.renamed(error, f"GDB refused `{command}`") from error

    def replaced(self) -> None:
        """Discard what GDB has read of the stopped guest, after its state was replaced.

        Loading a snapshot does this. Earlier frames become invalid. Breakpoints stay set.

        Raises:
            StateError: the guest runs.
        """
        self._connection.need("replaced", State.STOPPED)
        for cache in ("register-cache", "dcache"):
            self.console(f"maint flush {cache}")
        self._connection.run.replaced()

    def threads(self, *, timeout: float = COMMAND_SECONDS) -> tuple[Thread, ...]:
        """Return the guest's CPUs.

        Args:
            timeout: Seconds for GDB to answer.

        Raises:
            StateError: the guest runs.
            DeadlineError: GDB did not answer.
        """
        self._connection.need("threads", State.STOPPED)
        return stop.threads(self._connection.fetch("-thread-info", timeout))

    def backtrace(
        self, cpu: int | None = None, *, limit: int | None = None, timeout: float = COMMAND_SECONDS
    ) -> Backtrace:
        """Return the frames of a CPU, the innermost first.

        Args:
            cpu: Number of the CPU; None: the selected one.
            limit: Maximum number of frames.
            timeout: Seconds for GDB to answer.

        Raises:
            StateError: the guest runs.
            GdbError: GDB cannot read the stack, or there is no such CPU.
            DeadlineError: GDB did not answer.
        """
        self._connection.need("backtrace", State.STOPPED)
        thread = self.selected(timeout) if cpu is None else Thread.of(cpu)
        window = "" if limit is None else f" 0 {limit - 1}"
        entries = self._connection.fetch(f"-stack-list-frames --thread {thread.id}{window}", timeout)["stack"]
        frames = [self.frame_of(entry, thread) for entry in entries]
        if len(frames) > 1 and not frames[-1].pc:
            del frames[-1]  # the end of the kernel's stack; see `gdbinit/vmd_exceptions.py`
        return Backtrace(frames)

    def backtraces(
        self,
        *,
        limit: int = 64,
        modules: Sequence[str | os.PathLike[str]] = (),
        timeout: float = COMMAND_SECONDS,
    ) -> str:
        """Return the task and the frames of each CPU, as `vmd-bt-all` prints them.

        Args:
            limit: Maximum number of frames of a CPU.
            modules: The files of the kernel's modules, or directories with them, to load their symbols.
            timeout: Seconds for GDB to answer.

        Raises:
            StateError: the guest runs.
            GdbError: GDB cannot read a stack.
            DeadlineError: GDB did not answer.
        """
        self._connection.need("backtraces", State.STOPPED)
        words = "".join(f" {mi.quote(os.fspath(each))}" for each in modules)
        return self._text(f"-vmd-backtraces {limit}{words}", "the stacks", timeout)

    def dmesg(self, *, limit: int = 1000, timeout: float = COMMAND_SECONDS) -> str:
        """Return the kernel's log, read from guest memory, as `dmesg` prints it.

        Args:
            limit: Maximum number of lines; the last ones are returned.
            timeout: Seconds for GDB to answer.

        Raises:
            StateError: the guest runs.
            GdbError: GDB cannot read it, or vmlinux does not describe it.
            DeadlineError: GDB did not answer.
        """
        self._connection.need("dmesg", State.STOPPED)
        return self._text(f"-vmd-dmesg {limit}", "the kernel's log", timeout)

    def frame(self, *, timeout: float = COMMAND_SECONDS) -> Frame:
        """Return the selected frame.

        Args:
            timeout: Seconds for GDB to answer.

        Raises:
            StateError: the guest runs.
            DeadlineError: GDB did not answer.
        """
        self._connection.need("frame", State.STOPPED)
        found = self._connection.fetch("-stack-info-frame", timeout)["frame"]
        return self.frame_of(found, self.selected(timeout))

    def select(
        self,
        cpu: int | None = None,
        frame: Frame | int | None = None,
        *,
        timeout: float = COMMAND_SECONDS,
    ) -> Frame:
        """Select a CPU, a frame, or both, for evaluations without a frame.

        Args:
            cpu: Number of the CPU; None: the CPU of the frame, or the selected one.
            frame: The frame or its level; None: the innermost frame of the CPU.
            timeout: Seconds for GDB to answer.

        Returns:
            The selected frame.

        Raises:
            StateError: the guest runs.
            GdbError: there is no such CPU or frame.
            DeadlineError: GDB did not answer.
        """
        self._connection.need("select", State.STOPPED)
        if cpu is None and isinstance(frame, Frame):
            cpu = frame.thread.cpu
        if cpu is not None:
            self._connection.ask(f"-thread-select {Thread.of(cpu).id}", timeout)
        level = frame.level if isinstance(frame, Frame) else frame
        if level is not None:
            self._connection.ask(f"-stack-select-frame {level}", timeout)
        selected = self.frame(timeout=timeout)
        if level not in (None, selected.level):  # GDB selects the outermost frame instead
            raise GdbError(f"there is no frame {level}: the outermost is {selected.level}")
        return selected

    def selected(self, timeout: float = COMMAND_SECONDS) -> Thread:
        """Return the selected CPU."""
        answer = self._connection.fetch("-data-evaluate-expression $_thread", timeout)
        return Thread(int(answer["value"]))

    def frame_of(self, payload: Mapping[str, Any], thread: Thread) -> Frame:
        """Return the frame that MI's `frame={…}` describes."""
        return stop.frame(payload, thread, run=self._connection.run.runs, inspector=self)

    def _context(self, frame: Frame, what: str) -> str:
        """Return the MI options that select a frame."""
        self._connection.run.need_run(frame.run, f"`{what}` in {frame.function or hex(frame.pc)}")
        return f" --thread {frame.thread.id} --frame {frame.level}"

    def _text(self, command: str, what: str, timeout: float) -> str:
        try:
            packed = self._connection.fetch(command, timeout)["text"]
        except GdbError as error:
            raise gdb_errors.renamed(error, f"{what} cannot be read") from error
        return base64.b64decode(packed).decode(errors="replace")
