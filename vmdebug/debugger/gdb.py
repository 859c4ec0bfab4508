"""One GDB on one guest: symbols, breakpoints, questions; running and stopping are `control`'s.

GDB runs the guest in all-stop mode with `mi-async`: one stop stops every CPU, and
GDB answers while the guest runs, though most of what touches the guest needs it stopped.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from vmdebug import process, shipped
from vmdebug.deadline import Deadline
from vmdebug.debugger import breakpoints, mi, refused, stop, trace, transport
from vmdebug.debugger.breakpoints import Breakpoint
from vmdebug.debugger.control import STOP_SECONDS, Control
from vmdebug.debugger.identity import Identity, Verdict, Wanted
from vmdebug.debugger.memory import Memory
from vmdebug.debugger.runstate import RunState, State
from vmdebug.debugger.stop import Backtrace, Frame, Inspector, Stop, Thread
from vmdebug.debugger.transport import Answer, Transport
from vmdebug.debugger.value import Value
from vmdebug.errors import DeadlineError, GdbError, HostError, UsageError, VmdebugError

COMMAND_SECONDS = 30.0
"""How long GDB may take over a command that does not run the guest."""

REMOTE_SECONDS = 30
"""How long GDB waits for one answer of QEMU's; its own 2 s are too few on a loaded host."""

_SETTINGS = (
    "mi-async on",  # before connecting: without it GDB answers nothing at all while the guest runs
    f"remotetimeout {REMOTE_SECONDS}",
    "tcp auto-retry off",  # QEMU listens before it says that it has started: refused is refused
)

_STANDING = (State.STOPPED, State.UNCONNECTED, State.DETACHED)
"""Where GDB can look at things: the guest does not run, or there is none."""


class Gdb(Control):
    """One GDB process; a context manager that detaches from the guest and ends GDB.

    Made by `start`.
    """

    def __init__(self, transport: Transport, state: RunState) -> None:
        super().__init__(transport, state)
        self._memory = Memory(lambda command: self._ask(command).payload)
        self.notes: list[str] = []
        """What can be done without: the kernel's scripts do not work, the symbols are of another build."""

    @classmethod
    def start(
        cls,
        vmlinux: Path | None,
        scripts: Path | None = None,
        *,
        deadline: Deadline,
        program: str = "gdb",
    ) -> Self:
        """Start GDB with a kernel's symbols, not yet connected to a guest.

        Args:
            vmlinux: The ELF file with symbols; None goes without.
            scripts: Directory with `vmlinux-gdb.py` beside `scripts/gdb`, or None. When they fail, that
                is put into `notes`.
            deadline: For loading the symbols: about a second for 100 MB.
            program: GDB's name or path.

        Raises:
            HostError: there is no GDB, or one that is too old or has no Python.
            UsageError: GDB cannot read `vmlinux`; the message has its words.
            DeadlineError: it took too long.
        """
        # GDB's words are matched in places: they are to be English whatever the user speaks.
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        argv = transport.argv(process.find(program, package="gdb"))
        state = RunState()
        gdb = cls(Transport.start(argv, state, env=env), state)
        try:
            gdb._set_up(deadline)
            if vmlinux is not None:
                gdb._load(vmlinux, deadline)
            if scripts is not None:
                gdb._source(scripts, deadline)
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
        return self._transport.pid

    @property
    def identity(self) -> Verdict | None:
        """What is known of the kernel in guest memory, and how far KASLR has moved it; None: nobody asked."""
        return None if self._identity is None else self._identity.verdict

    def connect(
        self,
        endpoint: str | os.PathLike[str],
        *,
        deadline: Deadline,
        interrupter: Callable[[], None] | None = None,
        wanted: Wanted | None = None,
    ) -> Stop:
        """Attach to a guest, which stops it, and prove that its kernel is that of the symbols.

        Args:
            endpoint: Path of QEMU's gdbstub socket, or HOST:PORT.
            deadline: When to give up.
            interrupter: Stops the running guest from outside, such as QMP's `stop`, which QEMU reports to
                GDB as SIGINT; None has GDB itself do it.
            wanted: What the symbols are to be proven for, now or, where the guest has not mapped its kernel
                yet, as soon as it has; None proves nothing.

        Returns:
            Where the guest stood.

        Raises:
            StateError: it is connected already.
            MismatchError: the kernel in its memory is of another build.
            GdbError: nobody answers there.
            DeadlineError: it took too long.
        """
        self._need("connect", State.UNCONNECTED, State.DETACHED, State.GONE)
        self._interrupter = interrupter
        self._identity = None if wanted is None else Identity(wanted, self.notes.append)
        state = self._run_state
        try:
            self._execute(f"-target-select remote {mi.bare(os.fspath(endpoint))}", deadline)
            self._transport.wait(lambda: state.unseen, deadline, f"the guest at {endpoint} to stop")
        except DeadlineError as error:
            hint = "QEMU serves one GDB at a time: is another one attached?"
            raise DeadlineError(error.message, hint=hint, detail=error.detail) from error
        state.need("connect", State.STOPPED)
        return self._taken_stop()

    def detach(self, *, timeout: float = STOP_SECONDS) -> None:
        """Let go of the guest: breakpoints come out, and it runs on.

        Args:
            timeout: Seconds.

        Raises:
            StateError: GDB isn't attached.
            DeadlineError: the guest did not stop for it.
        """
        self._need("detach", State.STOPPED, State.RUNNING)
        deadline = Deadline.after(timeout)
        if self.state is State.RUNNING:
            self._interrupt(deadline)
        with self._run_state.letting_go():
            self._execute("-target-detach", deadline)

    def close(self, *, timeout: float = STOP_SECONDS) -> None:
        """Detach and end GDB, by force where it does not go; nothing happens the second time.

        Args:
            timeout: Seconds until force.
        """
        deadline = Deadline.after(timeout)
        try:
            if self.state in (State.STOPPED, State.RUNNING):
                with contextlib.suppress(VmdebugError):
                    self.detach(timeout=timeout / 2)
        finally:
            self._transport.close(deadline)

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

    def resume(self) -> None:
        """Set the guest running; raises as `cont` does."""
        self.cont(wait=False)

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

    def evaluate(self, expression: str, *, timeout: float = COMMAND_SECONDS) -> str:
        """Return an expression's value as GDB prints it, in the selected frame.

        Args:
            expression: In the language of the frame, with GDB's extensions.
            timeout: Seconds.

        Raises:
            GdbError: GDB cannot evaluate it.
            StateError: the guest runs.
        """
        self._need("evaluate", *_STANDING)
        command = f"-data-evaluate-expression {mi.quote(expression)}"
        try:
            return str(self._execute(command, Deadline.after(timeout)).payload["value"])
        except GdbError as error:
            raise refused.reworded(error, f"`{expression}` cannot be evaluated") from error

    def value(self, expression: str, *, frame: Frame | None = None) -> Value:
        """Return an expression's value with its type, in one round trip whatever its size.

        Args:
            expression: In the language of the frame, with GDB's extensions.
            frame: Where it is evaluated; None is the selected frame.

        Raises:
            GdbError: GDB cannot evaluate it.
            StateError: the guest runs, or has run since the frame was taken.
        """
        context = ""
        if frame is None:
            self._need("value", *_STANDING)
        else:
            self._run_state.need_run(frame.run, f"`{expression}` in {frame.function or hex(frame.pc)}")
            context = f" --thread {frame.thread.id} --frame {frame.level}"
        return Value(self._memory, self._memory.evaluate(expression, context), expression)

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
        return Backtrace(self._frame(entry, of) for entry in answer.payload["stack"])

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
        """
        self._need("select", State.STOPPED)
        if thread is None and isinstance(frame, Frame):
            thread = frame.thread
        if thread is not None:
            self._ask(f"-thread-select {thread.id if isinstance(thread, Thread) else thread}")
        if frame is not None:
            self._ask(f"-stack-select-frame {frame.level if isinstance(frame, Frame) else frame}")
        return self.frame()

    def _set_up(self, deadline: Deadline) -> None:
        try:
            for setting in _SETTINGS:
                self._execute(f"-gdb-set {setting}", deadline)
            where = str(shipped.gdbinit())
            script = f"python import sys; sys.path.insert(0, {where!r}); import vmd_mi"
            self._execute(f"-interpreter-exec console {mi.quote(script)}", deadline)
        except GdbError as error:
            raise HostError(
                f"this GDB cannot be used: {error.words or error.message}",
                hint="vmdebug needs GDB 12 or newer with Python: apt install gdb",
                detail=error.detail,
            ) from error

    def _load(self, vmlinux: Path, deadline: Deadline) -> None:
        # GDB splits at blanks and takes quotes away, as a shell does.
        quoted = re.sub(r"([\s\"'\\])", r"\\\1", str(vmlinux))
        try:
            self._execute(f"-file-exec-and-symbols {quoted}", deadline)
        except GdbError as error:
            raise UsageError(
                f"GDB cannot read the symbols in {vmlinux}: {error.words or error.message}",
                hint="give the kernel's vmlinux, an ELF file with debug information: --vmlinux FILE",
            ) from error

    def _source(self, scripts: Path, deadline: Deadline) -> None:
        for command in ("python import vmd_scripts; vmd_scripts.Scripts()", f"vmd-scripts {scripts}"):
            answer = self._execute(f"-interpreter-exec console {mi.quote(command)}", deadline)
            self.notes.extend(answer.log.splitlines())

    def _insert(self, command: str, where: str) -> Breakpoint:
        self._need("a breakpoint", *_STANDING, State.RUNNING)
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

    def _ask(self, command: str) -> Answer:
        return self._execute(command, Deadline.after(COMMAND_SECONDS))

    def _tell(self, command: str) -> Mapping[str, Any]:
        try:
            return self._ask(command).payload
        except GdbError as error:
            raise refused.planting(error, "a trace") from error

    def _selected_thread(self) -> Thread:
        return Thread(int(self.evaluate("$_thread")))

    def _inspector(self) -> Inspector:
        return self
