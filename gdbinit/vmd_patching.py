"""Finds the instructions that the kernel itself rewrites: software breakpoints there fail under KVM.

Under KVM a software breakpoint is an int3 in guest memory. Where the kernel rewrites that instruction, the
breakpoint is lost without a message; or the kernel first compares the instruction with what it expects,
finds int3, and stops with a BUG (`bug_at` of arch/x86/kernel/jump_label.c). A hardware breakpoint changes no
memory.

Modules have such instructions too; only those of the vmlinux are known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import gdb
import vmd_arch
import vmd_elf
import vmd_guest
import vmd_slide

_BITS = 2**64 - 1


def rewritten(address: int) -> str:
    """Return what the kernel rewrites at an address, such as "a jump label"; "" if nothing, or no longer."""
    table = _tables().get((address - vmd_slide.applied()) & _BITS)
    return "" if table is None or _done(table.done) else table.what


def need_hardware(breakpoint_: gdb.Breakpoint) -> str:
    """Return what the kernel rewrites at a software breakpoint under KVM; "" if the breakpoint works."""
    if vmd_guest.accel() != "kvm" or breakpoint_.type != gdb.BP_BREAKPOINT or not vmd_guest.has_vmlinux():
        return ""
    return next(filter(None, (rewritten(place.address) for place in breakpoint_.locations)), "")


def kind_of(location: str) -> int:
    """Return the type of breakpoint that works at a location: hardware if `need_hardware` says so."""
    if vmd_guest.accel() != "kvm":
        return gdb.BP_BREAKPOINT
    trial = gdb.Breakpoint(location, internal=True)
    try:
        return gdb.BP_HARDWARE_BREAKPOINT if need_hardware(trial) else gdb.BP_BREAKPOINT
    finally:
        trial.delete()


def check(number: str) -> dict[str, object]:
    """`-vmd-need-hardware NUMBER`: what the kernel rewrites at that breakpoint under KVM; "" if nothing."""
    found = (each for each in gdb.breakpoints() if each.number == int(number))
    return {"rewritten": next((need_hardware(each) for each in found), "")}


def _done(symbol: str) -> bool:
    """Whether the kernel has rewritten these instructions for the last time."""
    at = vmd_slide.linked(symbol) if symbol and vmd_guest.connected() else None
    return at is not None and any(vmd_guest.memory(at + vmd_slide.applied(), 4))


def _tables() -> dict[int, vmd_arch.PatchedText]:
    """Return the table of each rewritten address, linked; they are read once for each vmlinux."""
    symbols = vmd_slide.symbols()
    if symbols is None:
        return {}
    found: dict[int, vmd_arch.PatchedText] | None = getattr(symbols, "vmd_patching", None)
    if found is None:
        tables = vmd_arch.current().patched_text
        found = {address: table for table in tables for address in _addresses(table)}
        # An attribute of the objfile: it vanishes when the file is loaded again.
        symbols.vmd_patching = found  # type: ignore[attr-defined]
    return found


def _addresses(table: vmd_arch.PatchedText) -> Iterator[int]:
    """Yield the linked addresses in a table; none without the table or the type of its entries."""
    start, stop = vmd_slide.linked(table.start), vmd_slide.linked(table.stop)
    if start is None or stop is None:
        return
    try:
        entry = gdb.lookup_type(table.entry).strip_typedefs()
        length = int(entry[table.length].bitpos or 0) // 8 if table.length else None
    except (gdb.error, KeyError):
        return
    data = vmd_elf.read(vmd_guest.vmlinux(), start, stop - start)
    for at in range(0, len(data) - entry.sizeof + 1, entry.sizeof):
        if table.relative:
            first = start + at + struct.unpack_from("<i", data, at)[0]
        else:
            first = struct.unpack_from("<Q", data, at)[0]
        yield from range(first, first + (1 if length is None else data[at + length]))
