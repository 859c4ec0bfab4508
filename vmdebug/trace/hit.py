"""One hit of a traced place, independent of the collector."""

from __future__ import annotations

import msgspec

Argument = int | float | str | None
"""The value of an expression: the address for a pointer, the string for a `char *`, None if it could not be
read at that hit."""


class Task(msgspec.Struct, frozen=True):
    """The task that the CPU ran.

    Args:
        pid: The kernel's `task->pid`, which user space calls a thread id.
        comm: Its name.
    """

    pid: int
    comm: str


class Call(msgspec.Struct, frozen=True):
    """One frame of a hit's backtrace.

    Args:
        function: Its name; "" if unknown.
        pc: The address in it.
        file: Path of its source; "" if unknown.
        line: The line in that file; 0 if unknown.
    """

    function: str
    pc: int
    file: str = ""
    line: int = 0


class Hit(msgspec.Struct, frozen=True):
    """One call of a traced function.

    Args:
        symbol: The place, as the caller named it.
        args: The value of each expression, by its text.
        time: Seconds of host time since the trace started; in a replay, of the guest's time since its begin.
        guest_time: Seconds from the guest's boot to its last timer tick before the hit; None if unknown.
        cpu: Number of the CPU, from 0.
        task: The task that the CPU ran; None if unknown.
        backtrace: The frames, innermost first, if they were wanted.
        ret: The return value, if it was wanted and is known.
        duration: Seconds of host time until the function returned, if return values were wanted and it has.
    """

    symbol: str
    args: dict[str, Argument]
    time: float
    guest_time: float | None
    cpu: int
    task: Task | None
    backtrace: tuple[Call, ...] = ()
    ret: int | None = None
    duration: float | None = None
