"""Keeps GDB from taking a breakpoint in a replay for a permanent one, which it would skip.

GDB looks once, when it makes a breakpoint's location, whether the memory there has a breakpoint instruction.
It resumes from such a location by setting the PC behind it. The kernel fills its freed init memory with just
that byte (POISON_FREE_INITMEM of include/linux/poison.h): set after the boot, a breakpoint at start_kernel
would make GDB skip an instruction, once the guest has gone back to the boot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import gdb
import vmd_memory

_BYTES = 4
"""The longest breakpoint instruction."""


@contextlib.contextmanager
def judged_again() -> Iterator[None]:
    """Let GDB look again after the block, in which the guest moves, if the code at a breakpoint differs."""
    before = _code()
    yield
    if before and _code() != before:
        # This makes all locations again; GDB has no command that does only that.
        path = gdb.parameter("solib-search-path")
        gdb.execute(f"set solib-search-path {path or ''}", to_string=True)


def _code() -> dict[int, bytes]:
    """Return the instruction at each breakpoint; b"" where it is not mapped."""
    return {there.address: _read(there.address) for each in gdb.breakpoints() for there in _locations(each)}


def _locations(each: gdb.Breakpoint) -> list[gdb.BreakpointLocation]:
    kinds = (gdb.BP_BREAKPOINT, getattr(gdb, "BP_HARDWARE_BREAKPOINT", gdb.BP_BREAKPOINT))
    return list(each.locations) if each.is_valid() and each.type in kinds else []


def _read(address: int) -> bytes:
    try:
        return vmd_memory.read(address, _BYTES)
    except gdb.MemoryError:
        return b""
