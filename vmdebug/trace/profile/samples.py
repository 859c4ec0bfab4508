"""The samples of the plugin in QEMU: the program that takes one, and what its records tell."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from vmdebug.arch import Arch
from vmdebug.kimage import symbols
from vmdebug.trace.expressions import kernel_facts
from vmdebug.trace.expressions.generate import Facts
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.kernel_facts import Addresses
from vmdebug.trace.expressions.operations import Code, Label, Op, Program
from vmdebug.trace.plugin import records, wire
from vmdebug.trace.plugin.wire import Place, Request
from vmdebug.trace.profile.raw import RawSample
from vmdebug.trace.unwinding.stack import Frame, Stack

PC, PID, COMM, TGID, USER_PC, USER_FRAMES, FRAME_POINTER, STACK = range(8)
"""The values of a record, in order; any but the first may be missing."""

DEPTH = 127
"""The most frames of the kernel, and of user space: as many as the sampler in the guest takes."""

_WORD = struct.Struct("<Q")
_COMM_BYTES = 16


class Taken(msgspec.Struct, frozen=True):
    """A sample.

    Args:
        sample: The sample, with the host's time.
        clock: The guest's monotonic time at its last tick, in ns; 0 if unknown.
    """

    sample: RawSample
    clock: int


def request(kernel: Kernel, row: Arch, slide: int, period: int) -> Request:
    """Return the request of a profile.

    Args:
        kernel: The vmlinux, with debugging information.
        row: Its architecture.
        slide: How far KASLR has moved it.
        period: Instructions of a CPU between two samples.

    Raises:
        NotCompiledError: the vmlinux has no debugging information.
    """
    where, facts = kernel_facts.addresses(kernel), Facts(row=row, slide=slide)
    registers: list[str] = []
    program = Program(registers, bytearray())
    code = _sample(program, where, facts, symbols.thread_size(kernel.vmlinux))
    clock = kernel_facts.clock(where, facts, Program(registers, bytearray()))
    physical_base, direct_map = (
        each + slide if each else 0 for each in (where.physical_base, where.direct_map)
    )
    return Request(
        probes=1,
        places=(Place(address=0, kind=wire.SAMPLE, code=code),),
        registers=(*registers, row.debug.sp, row.debug.result),
        clock=clock,
        memory=(physical_base, direct_map, kernel_facts.DIRECT_MAP),
        period=period,
    )


def _sample(program: Program, where: Addresses, facts: Facts, stack_bytes: int) -> tuple[Op, ...]:
    """Return the program that puts the values; what cannot be read, as early in the boot, is left out."""
    users, user, kernel, end = Label(), Label(), Label(), Label()
    program(Code.PC)
    program.put(PC)
    if where.current:
        program.jump(Code.FAIL_TO, users)
        _put_task(program, where, facts)
    program.mark(users)
    program.jump(Code.FAIL_TO, kernel)
    _push_in_kernel(program)
    program.jump(Code.JUMP_IF_ZERO, user)
    if where.current:
        _put_interrupted_user(program, where, facts, stack_bytes)
    program.mark(kernel)
    program.jump(Code.FAIL_TO, end)
    _push_in_kernel(program)
    program.jump(Code.JUMP_IF_ZERO, end)
    program.register(facts.row.debug.frame_pointer)
    program.put(FRAME_POINTER)
    kernel_facts.push_interrupt_stack(where, facts, program)
    program.register(facts.row.debug.sp)
    program(Code.PUT_STACK, number=STACK, value=stack_bytes)
    program.jump(Code.JUMP, end)
    program.mark(user)
    program.jump(Code.FAIL_TO, end)
    program(Code.PC)
    program.put(USER_PC)
    program.register(facts.row.debug.frame_pointer)
    program(Code.PUT_FRAMES, number=USER_FRAMES, value=DEPTH)
    program.mark(end)
    return program.finished()


def _push_in_kernel(program: Program) -> None:
    """Push whether the kernel runs."""
    program(Code.CONSTANT, value=kernel_facts.UPPER_HALF)
    program(Code.PC)
    program(Code.LESS)


def _put_task(program: Program, where: Addresses, facts: Facts) -> None:
    """Put the pid and the name of the thread, and the pid of its process."""
    kernel_facts.push_task_of_user(where, facts, program)
    program(Code.DUPLICATE)
    program(Code.LOAD, size=4, number=1, value=where.pid)
    program(Code.PUT, number=PID)
    program(Code.DUPLICATE)
    program(Code.CONSTANT, value=where.comm)
    program(Code.ADD)
    program(Code.PUT_MEMORY, number=COMM, value=_COMM_BYTES)
    program(Code.LOAD, size=4, number=1, value=where.tgid)
    program(Code.PUT, number=TGID)


def _put_interrupted_user(program: Program, where: Addresses, facts: Facts, stack_bytes: int) -> None:
    """Put the program counter and the callers of user space that entered the kernel.

    Its registers are at the end of the task's stack: `task_pt_regs` of the kernel.
    """
    debug, none = facts.row.debug, Label()
    size = _WORD.size * len(debug.pt_regs)
    kernel_facts.push_task_of_user(where, facts, program)
    program(Code.DUPLICATE)
    program(Code.LOAD, size=8, value=where.mm)
    program.jump(Code.JUMP_IF_ZERO, none)  # a thread of the kernel
    program(Code.LOAD, size=8, value=where.stack)
    program(Code.DUPLICATE)
    program(Code.LOAD, size=8, value=stack_bytes - size + _WORD.size * debug.pt_regs.index(debug.pc))
    program(Code.PUT, number=USER_PC)
    bp = _WORD.size * debug.pt_regs.index(debug.frame_pointer)
    program(Code.LOAD, size=8, value=stack_bytes - size + bp)
    program(Code.PUT_FRAMES, number=USER_FRAMES, value=DEPTH)
    program.mark(none)


Unwind = Callable[[Stack], Iterator[Frame]]


def taken(chunks: Sequence[bytes], unwind: Unwind, period: int) -> Iterator[Taken]:
    """Yield the samples of records, in the order of each CPU.

    Args:
        chunks: What `Rings.take` has returned.
        unwind: Yields the frames of a copied stack of the kernel.
        period: The instructions that a sample stands for.
    """
    for fields, values in wire.records(chunks):
        _, _, cpu, time, clock, _, _, present, flags, *_ = fields
        found = _values(values, present)
        tid = found.get(PID, -1)
        comm = found.get(COMM, b"").partition(b"\0")[0].decode(errors="replace")
        yield Taken(
            RawSample(
                time=time,
                cpu=cpu,
                pid=found.get(TGID, tid),
                tid=tid,
                comm=comm if tid else f"swapper/{cpu}",
                kernel=tuple(_kernel(found, unwind)),
                user=_user(found),
                weight=period,
            ),
            clock if flags & wire.HAS_CLOCK else 0,
        )


def _values(data: memoryview, present: int) -> dict[int, Any]:
    """Return the values that a record has, by their numbers; in the order in which the program puts them."""
    found: dict[int, Any] = {}
    at = 0
    for number in range(STACK + 1):
        if not present >> number & 1:
            continue
        if number == COMM:
            found[number] = bytes(data[at : at + _COMM_BYTES])
            at += _COMM_BYTES
        elif number == USER_FRAMES:
            (count,) = _WORD.unpack_from(data, at)
            found[number] = struct.unpack_from(f"<{count}Q", data, at + _WORD.size)
            at += _WORD.size * (count + 1)
        elif number == STACK:
            found[number] = tuple(records.parts(data, at))
        else:
            (word,) = _WORD.unpack_from(data, at)
            found[number] = word - (1 << 64) if word >> 63 and number in (PID, TGID) else word
            at += _WORD.size
    return found


def _kernel(found: dict[int, Any], unwind: Unwind) -> Iterator[int]:
    """Yield the addresses of the kernel; those of callers are where calls return to."""
    pc = found[PC]
    if pc < kernel_facts.UPPER_HALF:
        return
    parts = found.get(STACK, ())
    stack = Stack(pc=pc, sp=parts[0][0] if parts else 0, bp=found.get(FRAME_POINTER, 0), parts=parts)
    for level, frame in enumerate(unwind(stack)):
        if level == DEPTH:
            return
        yield frame.at + 1 if level else pc


def _user(found: dict[int, Any]) -> tuple[int, ...]:
    pc = found.get(USER_PC, 0)
    return (pc, *found.get(USER_FRAMES, ())) if 0 < pc < kernel_facts.UPPER_HALF else ()
