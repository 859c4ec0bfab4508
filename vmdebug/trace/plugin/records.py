"""Makes hits of the plugin's records."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from vmdebug.trace.expressions.compiled import FRAME_INDEX, PC_INDEX, STACK_INDEX, Compiled
from vmdebug.trace.expressions.generate import Shape
from vmdebug.trace.hit import Argument, Call, Hit, Task
from vmdebug.trace.plugin import wire
from vmdebug.trace.probe import Probe
from vmdebug.trace.unwinding.stack import Stack

_WORD = struct.Struct("<q")
_UNSIGNED = struct.Struct("<Q")
_PART = struct.Struct("<QQ")
_FLOATS = {4: struct.Struct("<f"), 8: struct.Struct("<d")}
_STACK = 1 << PC_INDEX | 1 << FRAME_INDEX | 1 << STACK_INDEX

Unwind = Callable[[Stack], tuple[Call, ...]]


def hits(
    chunks: Sequence[bytes], probes: Sequence[Probe], compiled: Compiled, started: int, unwind: Unwind | None
) -> Iterator[Hit]:
    """Yield the hits of records.

    Args:
        chunks: What `Rings.take` has returned.
        probes: The probes of the trace.
        compiled: The trace.
        started: When the trace began, in ns since the host's boot.
        unwind: Makes the backtrace of a stack; None if there are no stacks.
    """
    for fields, values in wire.records(chunks):
        _, probe, cpu, time, clock, left, ret, present, flags, _, pid, comm = fields
        result = compiled.results[probe] if flags & wire.HAS_RET else None
        args, end = _values(values, compiled.shapes[probe], present)
        with_stack = unwind is not None and present & _STACK == _STACK
        yield Hit(
            symbol=probes[probe].where,
            args=dict(zip(probes[probe].args, args, strict=True)),
            time=max(time - started, 0) / 1e9,
            guest_time=clock / 1e9 if flags & wire.HAS_CLOCK else None,
            cpu=cpu,
            task=Task(pid, _text(comm)) if flags & wire.HAS_CONTEXT else None,  # type: ignore[arg-type]
            backtrace=unwind(_stack(values, end)) if with_stack and unwind is not None else (),
            ret=None if result is None else narrowed(ret, result),
            duration=(left - time) / 1e9 if left else None,
        )


def _values(data: memoryview, shapes: Sequence[Shape], present: int) -> tuple[list[Argument], int]:
    """Return the values of a record, and where they end."""
    found: list[Argument] = []
    at = 0
    for number, shape in enumerate(shapes):
        if not present >> number & 1:
            found.append(None)
        elif shape.kind == "string":
            (length,) = _WORD.unpack_from(data, at)
            if length < 0:
                # The string could not be read: give its address, as GDB's collector does.
                found.append(_UNSIGNED.unpack_from(data, at + 8)[0])
                at += 16
            else:
                found.append(bytes(data[at + 8 : at + 8 + length]).decode(errors="replace"))
                at += 8 + (length + 7) // 8 * 8
        elif shape.kind == "array":
            found.append(_text(bytes(data[at : at + shape.size])))
            at += (shape.size + 7) // 8 * 8
        elif shape.kind == "float":
            found.append(_FLOATS[shape.size].unpack_from(data, at)[0])
            at += 8
        else:
            found.append((_WORD if shape.kind == "signed" else _UNSIGNED).unpack_from(data, at)[0])
            at += 8
    return found, at


def _stack(data: memoryview, at: int) -> Stack:
    """Return the stack that follows the values: the program counter, the frame pointer, and the parts."""
    pc, bp = _PART.unpack_from(data, at)
    found = tuple(parts(data, at + _PART.size))
    return Stack(pc=pc, sp=found[0][0] if found else 0, bp=bp, parts=found)


def parts(data: memoryview, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield the parts of a copied stack: their addresses and bytes.

    Args:
        data: The values of a record.
        at: Where the parts begin.
    """
    while at + _PART.size <= len(data):
        sp, length = _PART.unpack_from(data, at)
        if not sp:
            return
        at += _PART.size
        yield sp, bytes(data[at : at + length])
        at += length


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")


def narrowed(number: int, shape: Shape) -> int:
    """Return the value that a register holds for a type: its lower bytes, signed if the type is."""
    bits = 8 * shape.size
    number &= (1 << bits) - 1
    return number - (1 << bits) if shape.kind == "signed" and number >> (bits - 1) else number
