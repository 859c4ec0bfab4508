"""Where and why the guest stopped: frozen values, and the questions to ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vmdebug.debugger.breakpoint import Breakpoint
from vmdebug.debugger.memory import COMMAND_SECONDS
from vmdebug.debugger.value import Value

ATTACHED = "attached"
BREAKPOINT = "breakpoint-hit"
WATCHPOINT = "watchpoint"
WATCHPOINT_SCOPE = "watchpoint-scope"
STEPPED = "end-stepping-range"
FINISHED = "function-finished"
REACHED = "location-reached"
SIGNAL = "signal-received"
BEGIN = "begin"
"""A recording begins here: there is nothing to go back to."""
PANIC = "panic"
OOPS = "oops"
WARNING = "warning"

FOLLOWED = "followed"
"""vmdebug's reason, in addition to MI's, for a step whose task has returned on another CPU, where it
continues."""

_REASONS = {
    FOLLOWED: STEPPED,
    "watchpoint-trigger": WATCHPOINT,
    "read-watchpoint-trigger": WATCHPOINT,
    "access-watchpoint-trigger": WATCHPOINT,
}


class Inspector(Protocol):
    """The part of GDB that frames and stops use; `inspection.Inspection` implements it."""

    def evaluate(self, expression: str, *, frame: Frame, timeout: float) -> Value:
        """Return the value of an expression in a frame."""

    def variable(self, kind: Literal["argument", "local"], name: str, frame: Frame, timeout: float) -> Value:
        """Return an argument or a local variable of a frame."""

    def backtrace(self, cpu: int | None = None, *, limit: int | None = None, timeout: float) -> Backtrace:
        """Return the frames of a CPU, the innermost first."""


@dataclass(frozen=True, slots=True)
class Thread:
    """One CPU of the guest, which to GDB is a thread.

    Args:
        id: GDB's number of the thread.
        name: Its name in GDB or QEMU: "CPU#0 [running]"; "" if unknown.
    """

    id: int
    name: str = field(default="", compare=False)

    @property
    def cpu(self) -> int:
        """The number of the CPU, as QEMU and the kernel count; QEMU's gdbstub numbers threads from 1."""
        return self.id - 1

    @classmethod
    def of(cls, cpu: int) -> Thread:
        """Return the thread of a CPU."""
        return cls(cpu + 1)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a stack at one stop. It becomes invalid when the guest runs.

    Args:
        level: 0 is the innermost frame.
        function: Name of the function; "" without symbols.
        file: Source file with its path, as DWARF has it; "" without symbols.
        line: Source line; 0 without symbols.
        pc: Address of the next instruction.
        thread: The CPU whose stack it is on.
        run: `RunState.runs` when the frame was read.
    """

    level: int
    function: str
    file: str
    line: int
    pc: int
    thread: Thread
    run: int = field(default=0, repr=False, compare=False)
    _inspector: Inspector | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        place = f" at {self.file}:{self.line}" if self.file else ""
        return f"{self.function or hex(self.pc)}{place}"

    def arg(self, name: str, *, timeout: float = COMMAND_SECONDS) -> Value:
        """Return an argument of the function.

        Args:
            name: Its name.
            timeout: Seconds for GDB to answer.

        Raises:
            UsageError: there is no such argument; the hint lists the arguments.
            GdbError: GDB cannot read it.
            StateError: the guest has run since.
            DeadlineError: GDB did not answer.
        """
        return self._gdb.variable("argument", name, self, timeout)

    def local(self, name: str, *, timeout: float = COMMAND_SECONDS) -> Value:
        """Return a local variable that is in scope here.

        Args:
            name: Its name.
            timeout: Seconds for GDB to answer.

        Raises:
            UsageError: there is no such variable in scope; the hint lists those that are.
            GdbError: GDB cannot read it.
            StateError: the guest has run since.
            DeadlineError: GDB did not answer.
        """
        return self._gdb.variable("local", name, self, timeout)

    def evaluate(self, expression: str, *, timeout: float = COMMAND_SECONDS) -> Value:
        """Return the value of an expression in this frame.

        Args:
            expression: In the language of the frame, with GDB's extensions.
            timeout: Seconds for GDB to answer.

        Raises:
            GdbError: GDB cannot evaluate it.
            StateError: the guest has run since.
            DeadlineError: GDB did not answer.
        """
        return self._gdb.evaluate(expression, frame=self, timeout=timeout)

    @property
    def _gdb(self) -> Inspector:
        assert self._inspector is not None, "a frame without its GDB"  # noqa: S101 - only tests make one
        return self._inspector


class Backtrace(tuple[Frame, ...]):
    """Frames, the innermost first; `str` has one line for each."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(f"#{frame.level:<3}{frame}" for frame in self)


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop of the guest.

    Args:
        reason: A constant of this module (`BREAKPOINT`, `PANIC`, …), or GDB's reason.
        thread: The CPU that stopped; all others stop with it.
        frame: Where it stopped.
        breakpoint: The breakpoint or watchpoint that was hit, or None.
        signal: Name of the signal; "" for none. QEMU sends SIGINT for an interrupt and for QMP's `stop`,
            SIGTRAP for a breakpoint that GDB did not set.
        details: All values of MI's `*stopped` record, such as a watchpoint's old and new "value", or
            "return-value".
    """

    reason: str
    thread: Thread
    frame: Frame
    breakpoint: Breakpoint | None = None
    signal: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _inspector: Inspector | None = field(default=None, repr=False, compare=False)

    def backtrace(self, limit: int | None = None, *, timeout: float = COMMAND_SECONDS) -> Backtrace:
        """Return the frames of the CPU that stopped, the innermost first.

        Args:
            limit: Maximum number of frames.
            timeout: Seconds for GDB to answer.

        Raises:
            StateError: the guest has run since.
            DeadlineError: GDB did not answer.
        """
        assert self._inspector is not None, "a stop without its GDB"  # noqa: S101 - only tests make one
        return self._inspector.backtrace(self.thread.cpu, limit=limit, timeout=timeout)


def reason(payload: Mapping[str, Any]) -> str:
    """Return the reason of a stop, from the values of `*stopped`."""
    word = str(payload.get("reason", ATTACHED))
    return _REASONS.get(word, word)


def pc(payload: Mapping[str, Any]) -> int:
    """Return the PC of a stop, from the values of `*stopped`; 0 if unknown."""
    return _address(payload.get("frame", {}).get("addr"))


def hit(payload: Mapping[str, Any]) -> int | None:
    """Return the number of the breakpoint or watchpoint that `*stopped` names; None for none."""
    if "bkptno" in payload:
        return int(payload["bkptno"])
    for key, inner in payload.items():
        if key.endswith("wpt") and isinstance(inner, Mapping):
            return int(inner["number"])
    number = payload.get("wpnum")
    return None if number is None else int(number)


def frame(
    payload: Mapping[str, Any], thread: Thread, *, run: int = 0, inspector: Inspector | None = None
) -> Frame:
    """Return the frame that an MI `frame={…}` describes."""
    function = str(payload.get("func", ""))
    return Frame(
        level=int(payload.get("level", 0)),
        function="" if function == "??" else function,
        file=str(payload.get("fullname") or payload.get("file") or ""),
        line=int(payload.get("line", 0)),
        pc=_address(payload.get("addr")),
        thread=thread,
        run=run,
        _inspector=inspector,
    )


def _address(word: object) -> int:
    # It is "<unavailable>" if the stack cannot be read.
    return int(word, 16) if isinstance(word, str) and word.startswith("0x") else 0


def threads(payload: Mapping[str, Any]) -> tuple[Thread, ...]:
    """Return the threads of `-thread-info`'s answer."""
    return tuple(
        Thread(int(entry["id"]), str(entry.get("details") or entry.get("name") or entry.get("target-id", "")))
        for entry in payload.get("threads", ())
    )
