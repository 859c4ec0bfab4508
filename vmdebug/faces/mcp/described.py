"""Results of the debugger as those of the tools."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

from vmdebug.debugger import breakpoint as set_here
from vmdebug.debugger import stop as stops
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import VmdebugError
from vmdebug.faces.mcp import results
from vmdebug.trace.hit import Argument, Hit

LARGEST_ERROR = 4095
"""MAX_ERRNO of include/linux/err.h: an address this close to the end of the address space is an error."""

EXACT = 2**53
"""JSON's readers may round larger numbers."""

_CPU = re.compile(r"^CPU (\d+): pid (\d+) \((.*)\)$", re.MULTILINE)


def frame(found: stops.Frame) -> results.Frame:
    """Return a frame."""
    return results.Frame(found.level, found.function, found.file, found.line, hex(found.pc))


def stop(found: stops.Stop, gdb: Gdb) -> results.Stop:
    """Return a stop, with the task that the CPU runs."""
    value = found.details.get("value")
    watched = value if isinstance(value, dict) else {}
    return results.Stop(
        reason=found.reason,
        cpu=found.thread.cpu,
        frame=frame(found.frame),
        task=task(gdb, found.thread.cpu),
        breakpoint=None if found.breakpoint is None else found.breakpoint.number,
        signal=found.signal,
        return_value=str(found.details.get("return-value", "")),
        error=error(_integer(found.details.get("return-value"))),
        old_value=str(watched.get("old", "")),
        new_value=str(watched.get("new", value if isinstance(value, str) else "")),
        notes=tuple(gdb.notes),
    )


def task(gdb: Gdb, cpu: int) -> results.Task | None:
    """Return the task that a CPU runs; None if it cannot be read, as before the kernel is mapped."""
    try:
        text = gdb.backtraces(limit=1)
    except VmdebugError:
        return None
    found = {int(number): results.Task(int(pid), comm) for number, pid, comm in _CPU.findall(text)}
    return found.get(cpu)


def breakpoints(gdb: Gdb, changed: Sequence[int] = ()) -> results.Breakpoints:
    """Return all breakpoints of GDB."""
    return results.Breakpoints(tuple(map(_breakpoint, gdb.breakpoints())), tuple(changed))


def _breakpoint(found: set_here.Breakpoint) -> results.Breakpoint:
    return results.Breakpoint(found.number, found.where, found.condition, found.hits, found.enabled)


def hit(found: Hit) -> results.Hit:
    """Return a hit of a trace."""
    return results.Hit(
        place=found.symbol,
        time=round(found.time, 6),
        cpu=found.cpu,
        task=None if found.task is None else results.Task(found.task.pid, found.task.comm),
        args={name: argument(value) for name, value in found.args.items()},
        return_value=None if found.ret is None else _number(found.ret),
        error=error(found.ret),
        duration=found.duration,
        backtrace=tuple(
            f"{call.function or hex(call.pc)}" + (f" at {call.file}:{call.line}" if call.file else "")
            for call in found.backtrace
        ),
    )


def error(value: int | None) -> str:
    """Return the name of the error that a function has returned, also in a pointer; "" for none."""
    if value is None:
        return ""
    for size in (2**64, 2**32):
        if size - LARGEST_ERROR <= value < size:
            value -= size
    return errno.errorcode.get(-value, "") if -LARGEST_ERROR <= value < 0 else ""


def _integer(text: object) -> int | None:
    """Return the number that GDB's text of a value begins with; None if it begins otherwise."""
    found = re.match(r"-?(?:0x[0-9a-f]+|\d+)\b", str(text))
    return None if found is None else int(found[0], 0)


def argument(value: Argument) -> Argument:
    """Return a value that JSON's readers do not round."""
    return _number(value) if isinstance(value, int) else value


def _number(value: int) -> int | str:
    return value if abs(value) <= EXACT else hex(value)
