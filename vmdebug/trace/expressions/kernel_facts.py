"""Programs that read the current task and the guest's time at a hit; see `gdbinit/vmd_hit_context.py`."""

from __future__ import annotations

import msgspec

from vmdebug.errors import UsageError
from vmdebug.filecache import cached
from vmdebug.trace.expressions import dwarf
from vmdebug.trace.expressions.dwarf import Unit
from vmdebug.trace.expressions.generate import Facts
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.operations import Code, Label, Op, Program
from vmdebug.trace.expressions.syntax import NotCompiledError, TypeName
from vmdebug.trace.expressions.types import Type

COMM = 16
"""Size of a task's name in bytes: TASK_COMM_LEN of include/linux/sched.h."""

TASK_CHANGES = "__switch_to"
"""The function that changes the current task, on every architecture."""

TASK_CHANGED = ("finish_task_switch", "finish_task_switch.isra.0")
"""What the new task runs first; `context_switch` and `schedule_tail` of kernel/sched/core.c call it."""

NAME_CHANGES = "__set_task_comm"

UPPER_HALF = 0xFFFF_0000_0000_0000
"""The kernel's half of the addresses begins here, or above."""

DIRECT_MAP = 0xFFFF888000000000
"""Where x86's kernel maps all RAM, if no variable says so: `__PAGE_OFFSET_BASE_L4` of page_64_types.h."""


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where a kernel keeps what each hit records; 0 for what the vmlinux does not tell.

    Args:
        current: Linked address of the per-CPU variable with the current task.
        pid: Offset of `pid` in `struct task_struct`.
        comm: Offset of `comm`.
        tgid: Offset of `tgid`.
        stack: Offset of `stack`.
        mm: Offset of `mm`.
        clock: Linked address of the timekeeper's `tkr_mono`.
        shift: Offset of its `shift`.
        xtime_nsec: Offset of its `xtime_nsec`.
        base: Offset of its `base`.
        changes: Linked addresses of `TASK_CHANGES`, `TASK_CHANGED` and `NAME_CHANGES`.
        name_end: The end of the last one's code.
        physical_base: Linked address of x86's `phys_base`: how far the image is from its linked physical
            address.
        interrupt_stack: Linked address of x86's per-CPU variable with the address of the last word of the
            stack of interrupts.
        direct_map: Linked address of x86's `page_offset_base`, the address at which all RAM is mapped.
    """

    current: int = 0
    pid: int = 0
    comm: int = 0
    tgid: int = 0
    stack: int = 0
    mm: int = 0
    clock: int = 0
    shift: int = 0
    xtime_nsec: int = 0
    base: int = 0
    changes: tuple[int, int, int] = (0, 0, 0)
    name_end: int = 0
    physical_base: int = 0
    direct_map: int = 0
    interrupt_stack: int = 0


def addresses(kernel: Kernel) -> Addresses:
    """Return where a kernel keeps what each hit records; from the cache while the vmlinux is unchanged."""
    return cached(kernel.vmlinux, "trace-facts-4", Addresses, lambda: _read(kernel))


def _read(kernel: Kernel) -> Addresses:
    found: dict[str, int] = {}
    for part in (_task, _clock, _interrupt_stack):
        try:
            found |= part(kernel)
        except (NotCompiledError, KeyError):
            continue
    changes, end = (0, 0, 0), 0
    try:
        (switch,), (named,) = kernel.addresses(TASK_CHANGES), kernel.addresses(NAME_CHANGES)
        (switched,) = (each for name in TASK_CHANGED for each in kernel.addresses(name))
        end = max(high for scope in kernel.unit_at(named).scopes(NAME_CHANGES) for _, high in scope.ranges)
        changes = (switch, switched, named)
    except (ValueError, NotCompiledError):
        pass  # one of them is inlined; then each hit reads the current task itself
    for name, symbol in (("physical_base", "phys_base"), ("direct_map", "page_offset_base")):
        found[name] = next(iter(kernel.addresses(symbol)), 0)
    return Addresses(**found, changes=changes, name_end=end)


def _task(kernel: Kernel) -> dict[str, int]:
    unit = kernel.unit_of("wake_up_process")
    task = unit.type_named(TypeName(("struct", "task_struct")))
    # In Linux 6.2 to 6.14 (e57ef2ed97c1) the variable shares a cache line with other hot ones.
    hot = kernel.addresses("pcpu_hot")
    within = _offset(unit.type_named(TypeName(("struct", "pcpu_hot"))), "current_task") if hot else 0
    (current,) = hot or kernel.addresses("current_task")
    members = {name: _offset(task, name) for name in ("pid", "comm", "tgid", "stack", "mm")}
    return {"current": current + within, **members}


def _interrupt_stack(kernel: Kernel) -> dict[str, int]:
    own = kernel.addresses("hardirq_stack_ptr")
    if own:
        return {"interrupt_stack": own[0]}
    unit = kernel.unit_of("wake_up_process")
    (hot,) = kernel.addresses("pcpu_hot") or (0,)
    found = _offset(unit.type_named(TypeName(("struct", "pcpu_hot"))), "hardirq_stack_ptr")
    return {"interrupt_stack": hot + found} if hot else {}


def _clock(kernel: Kernel) -> dict[str, int]:
    unit = kernel.unit_of("ktime_get")
    at, kind = _timekeeper(unit)
    mono, inside = kind.member("tkr_mono") or (None, 0)
    if mono is None:
        raise NotCompiledError("struct timekeeper has no tkr_mono")
    clock = unit.complete(mono.type)
    offsets = {name: _offset(clock, name) for name in ("shift", "xtime_nsec", "base")}
    return {"clock": at + inside, **offsets}


def _timekeeper(unit: Unit) -> tuple[int, Type]:
    # Since Linux 6.17 there is an array with auxiliary clocks; TIMEKEEPER_CORE is the first element.
    for name in ("timekeeper_data", "tk_core"):
        found = unit.variable(name)
        if found is not None:
            kind = dwarf.type_of(found[0])
            kind = unit.complete(kind.target if kind.kind == "array" else kind)
            return found[1] + _offset(kind, "timekeeper"), unit.complete(_member_type(kind, "timekeeper"))
    raise NotCompiledError("the kernel has neither timekeeper_data nor tk_core")


def _member_type(kind: Type, name: str) -> Type:
    found = kind.member(name)
    if found is None:
        raise NotCompiledError(f"{kind.name} has no member {name}")
    return found[0].type


def _offset(kind: Type, name: str) -> int:
    found = kind.member(name)
    if found is None:
        raise NotCompiledError(f"{kind.name} has no member {name}")
    return found[1]


def push_task(where: Addresses, facts: Facts, program: Program) -> None:
    """Push the address of the task that the CPU runs.

    Raises:
        UsageError: the vmlinux does not tell where the kernel keeps it.
    """
    if not where.current:
        raise UsageError("the vmlinux does not tell where the kernel keeps the current task")
    _push_per_cpu(where.current, facts, program)


def _push_per_cpu(variable: int, facts: Facts, program: Program) -> None:
    debug = facts.row.debug
    slid = 0 if variable < int(debug.zero_based_below, 16) else facts.slide
    program.register(debug.per_cpu_register)
    program(Code.LOAD, size=8, value=variable + slid)


def push_task_of_user(where: Addresses, facts: Facts, program: Program) -> None:
    """Push the address of the task that the CPU runs, also while that is in user space.

    The kernel exchanges two registers whenever it is entered and left; only its own has an address of the
    upper half.
    """
    debug, own, load = facts.row.debug, Label(), Label()
    program.register(debug.per_cpu_register)
    program(Code.CONSTANT, value=UPPER_HALF)
    program(Code.LESS)
    program.jump(Code.JUMP_IF_ZERO, own)
    program.register(facts.row.user_per_cpu_register)
    program.jump(Code.JUMP, load)
    program.mark(own)
    program.register(debug.per_cpu_register)
    program.mark(load)
    slid = 0 if where.current < int(debug.zero_based_below, 16) else facts.slide
    program(Code.LOAD, size=8, value=where.current + slid)


def push_interrupt_stack(where: Addresses, facts: Facts, program: Program) -> None:
    """Push the address of the last word of the CPU's stack of interrupts; 0 if the vmlinux does not tell."""
    if where.interrupt_stack:
        _push_per_cpu(where.interrupt_stack, facts, program)
    else:
        program(Code.CONSTANT)


def context(where: Addresses, facts: Facts, program: Program) -> tuple[Op, ...]:
    """Return the program that puts the task's pid and name; () if the vmlinux does not tell."""
    if not where.current:
        return ()
    push_task(where, facts, program)
    program(Code.DUPLICATE)
    program(Code.LOAD, size=4, number=1, value=where.pid)
    program(Code.PUT)
    program(Code.CONSTANT, value=where.comm)
    program(Code.ADD)
    program(Code.PUT_MEMORY, value=COMM)
    return program.finished()


def clock(where: Addresses, facts: Facts, program: Program) -> tuple[Op, ...]:
    """Return the program that leaves the guest's monotonic time in ns at its last tick; () if unknown.

    See `struct tk_read_base` of include/linux/timekeeper_internal.h.
    """
    if not where.clock:
        return ()

    def load(offset: int, size: int) -> None:
        program(Code.CONSTANT, value=where.clock + facts.slide)
        program(Code.LOAD, size=size, value=offset)

    load(where.xtime_nsec, 8)
    load(where.shift, 4)
    program(Code.SHIFT_RIGHT)
    load(where.base, 8)
    program(Code.ADD)
    return program.finished()
