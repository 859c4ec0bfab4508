"""Reads kernel data structures: lists, per-CPU variables, tasks. Functions have the kernel's names.

They probe for types and fields and never compare versions; the newest kernel's layout comes first.
"""

from __future__ import annotations

from collections.abc import Iterator

import gdb
import vmd_arch
import vmd_debuginfo
import vmd_slide


def has_field(kind: gdb.Type, name: str) -> bool:
    """Whether a struct has a field of that name."""
    return any(field.name == name for field in kind.strip_typedefs().fields())


def struct(name: str) -> gdb.Type:
    """Return a struct's type.

    Raises:
        gdb.GdbError: the vmlinux has no such type.
    """
    try:
        return gdb.lookup_type(f"struct {name}")
    except gdb.error as error:
        raise gdb.GdbError(vmd_debuginfo.no_struct(name)) from error


def at(address: int, kind: gdb.Type) -> gdb.Value:
    """Return the value at an address, modulo 2**64, as the kernel's own arithmetic."""
    return gdb.Value(address & (2**64 - 1)).cast(kind.pointer()).dereference()


def address_of(value: gdb.Value) -> int:
    """Return a value's address.

    Raises:
        gdb.GdbError: it is not in memory.
    """
    if value.address is None:
        raise gdb.GdbError(f"{value} has no address")
    return int(value.address) & (2**64 - 1)


def list_for_each_entry(head: gdb.Value, kind: gdb.Type, member: str) -> Iterator[gdb.Value]:
    """Yield the entries of a `struct list_head`, as the macro of include/linux/list.h does.

    Args:
        head: The list's head, which is not an entry.
        kind: The type of its entries.
        member: The member of an entry that is its `struct list_head`.
    """
    offset = offset_of(kind, member)
    end = address_of(head)
    node = head
    while True:
        following = int(node["next"]) & (2**64 - 1)
        if following in (end, 0):
            return
        entry = at(following - offset, kind)
        yield entry
        node = entry[member]


def per_cpu(cpu: int, name: str) -> gdb.Value:
    """Return a CPU's copy of a per-CPU variable.

    Raises:
        gdb.error: the kernel has no such variable.
    """
    variable = gdb.parse_and_eval(name)
    return at(per_cpu_base(address_of(variable)) + per_cpu_offset(cpu), variable.type)


def per_cpu_base(address: int) -> int:
    """Return the address to which a CPU's per-CPU offset is added: the linked one if that is near 0.

    Args:
        address: GDB's address of the variable, which includes the slide.
    """
    linked = address - vmd_slide.applied()
    return linked if linked < vmd_arch.current().zero_based_below else address


def current(cpu: int) -> gdb.Value:
    """Return the `struct task_struct` that a CPU runs."""
    return _current(cpu).dereference()


def current_pointer(cpu: int) -> int:
    """Return where the address of the `struct task_struct` is that a CPU runs."""
    return address_of(_current(cpu))


def _current(cpu: int) -> gdb.Value:
    try:
        # In Linux 6.2 to 6.14 (e57ef2ed97c1) it shares a cache line with other hot variables.
        return per_cpu(cpu, "pcpu_hot")["current_task"]
    except gdb.error:
        return per_cpu(cpu, "current_task")


def tasks() -> Iterator[gdb.Value]:
    """Yield every task: init_task, then each process with all its threads."""
    kind = struct("task_struct")
    init_task = gdb.parse_and_eval("init_task")
    yield init_task
    for leader in list_for_each_entry(init_task["tasks"], kind, "tasks"):
        yield from list_for_each_entry(leader["signal"]["thread_head"], kind, "thread_node")


def name_of(task: gdb.Value) -> str:
    """Return a task's name, its `comm`."""
    return task["comm"].string(errors="replace")


def offset_of(kind: gdb.Type, member: str) -> int:
    """Return the offset of a member of a struct, in bytes."""
    null = gdb.Value(0).cast(kind.pointer())
    return int(null[member].address or 0)


def per_cpu_offset(cpu: int) -> int:
    """Return what is added to a per-CPU variable's address for a CPU's copy of it.

    Raises:
        gdb.MemoryError: the kernel's data is not mapped.
    """
    offset = number(f"((unsigned long *) &__per_cpu_offset)[{cpu}]")
    return 0 if offset is None else offset  # without SMP the variable itself is the only copy


def number(expression: str) -> int | None:
    """Return an unsigned number of the kernel; None if it does not have the variable.

    Args:
        expression: With casts, because a vmlinux without debugging information has no types of variables.

    Raises:
        gdb.MemoryError: it cannot be read.
    """
    try:
        return int(gdb.parse_and_eval(expression)) & (2**64 - 1)
    except gdb.MemoryError:
        raise
    except gdb.error:
        return None
