"""Where and why the guest stopped: frozen values, with the questions that one asks of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vmdebug.debugger.memory import COMMAND_SECONDS
from vmdebug.debugger.value import Value

if TYPE_CHECKING:
    from vmdebug.debugger.breakpoints import Breakpoint

ATTACHED = "attached"
BREAKPOINT = "breakpoint-hit"
WATCHPOINT = "watchpoint"
WATCHPOINT_SCOPE = "watchpoint-scope"
STEPPED = "end-stepping-range"
FINISHED = "function-finished"
REACHED = "location-reached"
SIGNAL = "signal-received"
PANIC = "panic"
OOPS = "oops"
WARNING = "warning"

FOLLOWED = "followed"
"""MI's word, made by us, for a step whose task has come back on another CPU, where it goes on."""

_REASONS = {
    FOLLOWED: STEPPED,
    "watchpoint-trigger": WATCHPOINT,
    "read-watchpoint-trigger": WATCHPOINT,
    "access-watchpoint-trigger": WATCHPOINT,
}


class Inspector(Protocol):
    """What frames and stops ask of GDB; `gdb.Gdb` answers."""

    def evaluate(self, expression: str, *, frame: Frame, timeout: float) -> Value:
        """Return the value of an expression in a frame."""

    def variable(self, kind: Literal["argument", "local"], name: str, frame: Frame) -> Value:
        """Return an argument or a local variable of a frame."""

    def backtrace(self, thread: Thread | None = None, *, limit: int | None = None) -> Backtrace:
        """Return a thread's frames, the innermost first."""


@dataclass(frozen=True, slots=True)
class Thread:
    """One CPU of the guest, which is a thread to GDB.

    Args:
        id: GDB's number.
        name: What GDB or QEMU calls it: "CPU#0 [running]"; "" where it isn't known.
    """

    id: int
    name: str = field(default="", compare=False)

    @property
    def cpu(self) -> int:
        """The CPU's number, as QEMU and the kernel count; QEMU's gdbstub numbers threads from 1."""
        return self.id - 1


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a stack, as it was at one stop; once the guest has run it answers no more.

    Args:
        level: 0 is the innermost.
        function: Its name; "" where there are no symbols.
        file: Source file with its path, as DWARF has it; "" where there are no symbols.
        line: Source line; 0 where there are no symbols.
        pc: Address of the next instruction.
        thread: Whose stack it is on.
        run: `RunState.runs` when it was taken.
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

    def arg(self, name: str) -> Value:
        """Return an argument of the function.

        Raises:
            UsageError: it has none of that name; the hint lists its arguments.
            StateError: the guest has run since.
        """
        return self._gdb.variable("argument", name, self)

    def local(self, name: str) -> Value:
        """Return a local variable that is in scope here.

        Raises:
            UsageError: there is none of that name; the hint lists those that are in scope.
            StateError: the guest has run since.
        """
        return self._gdb.variable("local", name, self)

    def evaluate(self, expression: str, *, timeout: float = COMMAND_SECONDS) -> Value:
        """Return the value of an expression in this frame.

        Args:
            expression: In the language of the frame, with GDB's extensions.
            timeout: Seconds.

        Raises:
            GdbError: GDB cannot evaluate it.
            StateError: the guest has run since.
        """
        return self._gdb.evaluate(expression, frame=self, timeout=timeout)

    @property
    def _gdb(self) -> Inspector:
        assert self._inspector is not None, "a frame without its GDB"  # noqa: S101 - made by hand, in a test
        return self._inspector


class Backtrace(tuple[Frame, ...]):
    """Frames, the innermost first; printed a line each."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(f"#{frame.level:<3}{frame}" for frame in self)


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop of the guest.

    Args:
        reason: One of this module's constants, else GDB's word for it: `BREAKPOINT`, `PANIC`, …
        thread: The CPU that stopped; all others stop with it.
        frame: Where it stopped.
        breakpoint: The breakpoint or watchpoint that was hit, or None.
        signal: Name of the signal, "" where there was none. QEMU says SIGINT for an
            interrupt and for QMP's `stop`, SIGTRAP for a breakpoint that isn't GDB's.
        details: All that MI's `*stopped` record carries: a watchpoint's "value", old and new; "return-value".
    """

    reason: str
    thread: Thread
    frame: Frame
    breakpoint: Breakpoint | None = None
    signal: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _inspector: Inspector | None = field(default=None, repr=False, compare=False)

    def backtrace(self, limit: int | None = None) -> Backtrace:
        """Return the frames of the CPU that stopped, the innermost first.

        Args:
            limit: How many at most.

        Raises:
            StateError: the guest has run since.
        """
        assert self._inspector is not None, "a stop without its GDB"  # noqa: S101 - made by hand, in a test
        return self._inspector.backtrace(self.thread, limit=limit)


def reason(payload: Mapping[str, Any]) -> str:
    """Return why the guest stopped, of what `*stopped` carries."""
    word = str(payload.get("reason", ATTACHED))
    return _REASONS.get(word, word)


def pc(payload: Mapping[str, Any]) -> int:
    """Return where the guest stopped, of what `*stopped` carries; 0 where that is not known."""
    return _address(payload.get("frame", {}).get("addr"))


def hit(payload: Mapping[str, Any]) -> int | None:
    """Return the number of the breakpoint or watchpoint that `*stopped` names."""
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
    # "<unavailable>" where the stack cannot be read.
    return int(word, 16) if isinstance(word, str) and word.startswith("0x") else 0


def threads(payload: Mapping[str, Any]) -> tuple[Thread, ...]:
    """Return the threads of `-thread-info`'s answer."""
    return tuple(
        Thread(int(entry["id"]), str(entry.get("details") or entry.get("name") or entry.get("target-id", "")))
        for entry in payload.get("threads", ())
    )
