"""Reads values, CPUs and frames of a stopped guest, and executes GDB commands."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import Any, Literal

from vmdebug.debugger import gdb_errors, mi, stop
from vmdebug.debugger.connection import NOT_RUNNING, Connection
from vmdebug.debugger.memory import COMMAND_SECONDS, Memory, Snapshot
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
            timeout: Seconds to wait.

        Raises:
            GdbError: GDB cannot evaluate it.
            StateError: the guest runs, or has run since the frame was read.
        """
        if frame is None:
            self._connection.need("evaluate", *NOT_RUNNING)
        context = "" if frame is None else self._context(frame, expression)
        return Value(self._memory, self._memory.evaluate(expression, context, timeout), expression)

    def variable(self, kind: Literal["argument", "local"], name: str, frame: Frame) -> Value:
        """Return an argument or a local variable of a frame.

        Raises:
            UsageError: the frame has no such variable; the hint lists its variables.
            GdbError: GDB cannot read it.
            StateError: the guest has run since the frame was read.
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
        """Return a CPU's copy of a per-CPU variable, like the kernel's `per_cpu(var, cpu)`.

        Args:
            variable: Its name, or a member of it: "runqueues", "runqueues.nr_running".
            cpu: The kernel's number of the CPU. A kernel without SMP has CPU 0 and one copy.

        Raises:
            GdbError: there is no such variable, or no such CPU.
            StateError: the guest runs.
        """
        self._connection.need("per_cpu", *NOT_RUNNING)
        name = f"per_cpu({variable}, {cpu})"
        return Value(self._memory, self._memory.per_cpu(variable, cpu), name)

    def console(self, command: str, *, timeout: float = COMMAND_SECONDS) -> str:
        """Execute a GDB command, and return its output.

        Args:
            command: One line: "info registers rip".
            timeout: Seconds.

        Raises:
            GdbError: GDB refused it.
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

    def threads(self) -> tuple[Thread, ...]:
        """Return the guest's CPUs.

        Raises:
            StateError: the guest runs.
        """
        self._connection.need("threads", State.STOPPED)
        return stop.threads(self._connection.fetch("-thread-info"))

    def backtrace(self, cpu: int | None = None, *, limit: int | None = None) -> Backtrace:
        """Return the frames of a CPU, the innermost first.

        Args:
            cpu: Number of the CPU; None: the selected one.
            limit: Maximum number of frames.

        Raises:
            StateError: the guest runs.
            GdbError: GDB cannot read the stack, or there is no such CPU.
        """
        self._connection.need("backtrace", State.STOPPED)
        thread = self.selected() if cpu is None else Thread.of(cpu)
        window = "" if limit is None else f" 0 {limit - 1}"
        entries = self._connection.fetch(f"-stack-list-frames --thread {thread.id}{window}")["stack"]
        frames = [self.frame_of(entry, thread) for entry in entries]
        if len(frames) > 1 and not frames[-1].pc:
            del frames[-1]  # the end of the kernel's stack; see `gdbinit/vmd_exceptions.py`
        return Backtrace(frames)

    def backtraces(
        self,
        *,
        limit: int = 64,
        modules: str | os.PathLike[str] | None = None,
        timeout: float = COMMAND_SECONDS,
    ) -> str:
        """Return the task and the frames of each CPU, as `vmd-bt-all` prints them.

        Args:
            limit: Maximum number of frames of a CPU.
            modules: Directory with the kernel's modules, to load their symbols; None: load none.
            timeout: Seconds.

        Raises:
            StateError: the guest runs.
            GdbError: GDB cannot read a stack.
        """
        self._connection.need("backtraces", State.STOPPED)
        words = "" if modules is None else f" {mi.quote(os.fspath(modules))}"
        return self._text(f"-vmd-backtraces {limit}{words}", timeout)

    def dmesg(self, *, limit: int = 1000, timeout: float = COMMAND_SECONDS) -> str:
        """Return the kernel's log, read from guest memory, as `dmesg` prints it.

        Args:
            limit: Maximum number of lines; the last ones are returned.
            timeout: Seconds.

        Raises:
            StateError: the guest runs.
            GdbError: GDB cannot read it, or vmlinux does not describe it.
        """
        self._connection.need("dmesg", State.STOPPED)
        return self._text(f"-vmd-dmesg {limit}", timeout)

    def frame(self) -> Frame:
        """Return the selected frame.

        Raises:
            StateError: the guest runs.
        """
        self._connection.need("frame", State.STOPPED)
        return self.frame_of(self._connection.fetch("-stack-info-frame")["frame"], self.selected())

    def select(self, cpu: int | None = None, frame: Frame | int | None = None) -> Frame:
        """Select a CPU, a frame, or both, for evaluations without a frame.

        Args:
            cpu: Number of the CPU; None: the CPU of the frame, or the selected one.
            frame: The frame or its level; None: the innermost frame of the CPU.

        Returns:
            The selected frame.

        Raises:
            StateError: the guest runs.
            GdbError: there is no such CPU or frame.
        """
        self._connection.need("select", State.STOPPED)
        if cpu is None and isinstance(frame, Frame):
            cpu = frame.thread.cpu
        if cpu is not None:
            self._connection.ask(f"-thread-select {Thread.of(cpu).id}")
        level = frame.level if isinstance(frame, Frame) else frame
        if level is not None:
            self._connection.ask(f"-stack-select-frame {level}")
        selected = self.frame()
        if level not in (None, selected.level):  # GDB selects the outermost frame instead
            raise GdbError(f"there is no frame {level}: the outermost is {selected.level}")
        return selected

    def selected(self) -> Thread:
        """Return the selected CPU."""
        return Thread(int(self._connection.fetch("-data-evaluate-expression $_thread")["value"]))

    def frame_of(self, payload: Mapping[str, Any], thread: Thread) -> Frame:
        """Return the frame that MI's `frame={…}` describes."""
        return stop.frame(payload, thread, run=self._connection.run.runs, inspector=self)

    def _context(self, frame: Frame, what: str) -> str:
        """Return the MI options that select a frame."""
        self._connection.run.need_run(frame.run, f"`{what}` in {frame.function or hex(frame.pc)}")
        return f" --thread {frame.thread.id} --frame {frame.level}"

    def _text(self, command: str, timeout: float) -> str:
        packed = self._connection.fetch(command, timeout)["text"]
        return base64.b64decode(packed).decode(errors="replace")
