"""The results of the tools; the SDK makes their JSON schemas of these classes.

Addresses are hexadecimal text, because JSON's readers may round numbers above 2**53.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vmdebug.vm.guest_status import Status


@dataclass(frozen=True)
class Machine:
    """A VM; `gdb` says whether GDB is attached, and whether the guest is stopped in it."""

    name: str
    status: Status
    guest: str
    release: str
    build_id: str
    accel: str
    has_symbols: bool
    started_here: bool
    gdb: Literal["not attached", "stopped", "running"] = "not attached"
    snapshots: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overview:
    """The VMs that may be used, and the guests that `start` takes."""

    machines: tuple[Machine, ...]
    guests: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A task of the guest's kernel."""

    pid: int
    comm: str


@dataclass(frozen=True)
class Frame:
    """A frame of a stack; level 0 is the innermost."""

    level: int
    function: str
    file: str
    line: int
    pc: str


@dataclass(frozen=True)
class Breakpoint:
    """A breakpoint or watchpoint."""

    number: int
    where: str
    condition: str
    hits: int
    enabled: bool


@dataclass(frozen=True)
class Breakpoints:
    """All breakpoints and watchpoints; `changed` are those that this call has set or deleted."""

    breakpoints: tuple[Breakpoint, ...]
    changed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stop:
    """Where and why the guest is stopped; `error` is the name of an error that a function has returned."""

    reason: str
    cpu: int
    frame: Frame
    task: Task | None = None
    breakpoint: int | None = None
    signal: str = ""
    return_value: str = ""
    error: str = ""
    old_value: str = ""
    new_value: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """Whether the guest runs, and where it has stopped if it does not."""

    running: bool
    stop: Stop | None = None


@dataclass(frozen=True)
class Stack:
    """The frames of a CPU, or the text of all CPUs' stacks."""

    frames: tuple[Frame, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Variable:
    """An argument or a local variable, as GDB prints it."""

    name: str
    value: str


@dataclass(frozen=True)
class Variables:
    """The arguments and local variables of a frame."""

    frame: Frame
    arguments: tuple[Variable, ...]
    locals: tuple[Variable, ...]


@dataclass(frozen=True)
class Value:
    """The value of an expression as GDB prints it; `text` is what a `char *` points to."""

    expression: str
    type: str
    value: str
    address: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Command:
    """A command in the guest.

    If `finished` is false, a breakpoint has stopped the guest (`stop`): use `continue`, then `exec` with
    `job`.
    """

    finished: bool
    status: int | None = None
    stdout: str = ""
    stderr: str = ""
    stop: Stop | None = None
    job: int | None = None


@dataclass(frozen=True)
class Hit:
    """One call of a traced place; `time` is seconds since the trace began.

    `error` is the name of the error that it has returned, such as ENOENT.
    """

    place: str
    time: float
    cpu: int
    task: Task | None
    args: dict[str, int | float | str | None] = field(default_factory=dict)
    return_value: int | str | None = None
    error: str = ""
    duration: float | None = None
    backtrace: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """The hits of a trace, and who collected them; `ended` says why it ended."""

    collector: str
    hits: tuple[Hit, ...]
    counts: dict[str, int] = field(default_factory=dict)
    ended: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    command: Command | None = None


@dataclass(frozen=True)
class Text:
    """A text; `omitted` is the number of older lines that are left out."""

    text: str
    omitted: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of a VM, oldest first."""

    vm: str
    snapshots: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """What was done."""

    done: str


@dataclass(frozen=True)
class Failure:
    """The error of a tool: what was wanted and found, what to do, and evidence."""

    kind: str
    message: str
    hint: str = ""
    detail: str = ""
    exit_status: int = 1

    def text(self) -> str:
        """Return it as text."""
        return "\n".join(part for part in (self.message, self.hint, self.detail) if part)

    def fields(self) -> dict[str, Any]:
        """Return it as an object of JSON."""
        return dict(vars(self))
