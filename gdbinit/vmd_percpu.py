"""Per-CPU variables of one CPU, with a check of the CPU number."""

from __future__ import annotations

import gdb
import vmd_kernel

MASK = (1 << 64) - 1


def variable(cpu: int, name: str) -> gdb.Value:
    """Return a CPU's copy of a per-CPU variable, or of a member of it.

    Raises:
        gdb.error: there is no such variable, or no such CPU.
    """
    _need(cpu)
    return vmd_kernel.per_cpu(cpu, name)


def address(pointer: int, cpu: int) -> int:
    """Return the address to which a per-CPU pointer of the kernel points for a CPU.

    Raises:
        gdb.error: there is no such CPU.
    """
    _need(cpu)
    return (pointer + vmd_kernel.per_cpu_offset(cpu)) & MASK


def _need(cpu: int) -> None:
    count = vmd_kernel.number("*(unsigned int *) &nr_cpu_ids") or 1  # none without SMP
    if not 0 <= cpu < count:
        raise gdb.GdbError(f"no CPU {cpu}: the kernel has CPUs 0 to {count - 1}")
