"""Finds the instructions that leave a function, and the type of what it returns.

A trace of return values needs a breakpoint at each of them from the start: GDB can insert none while the
guest runs, nor in `stop()`.
"""

from __future__ import annotations

import re

import gdb
import vmd_arch
from vmd_registers import WORD

_NUMBERS = (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR, gdb.TYPE_CODE_BOOL, gdb.TYPE_CODE_ENUM)

_INSTRUCTION = re.compile(r"^(?:=>)?\s*0x([0-9a-f]+) <[^>]*>:\t(\S+)[ \t]*(?:0x([0-9a-f]+))?", re.MULTILINE)


def exits(pc: int) -> tuple[list[int], list[int]]:
    """Return the addresses at which the function around `pc` returns, and at which it jumps to another one.

    The code is read from the vmlinux, because the guest may not have loaded it yet.
    """
    trusted = gdb.parameter("trust-readonly-sections")
    gdb.execute("set trust-readonly-sections on", to_string=True)
    try:
        listing = gdb.execute(f"disassemble {pc:#x}", to_string=True)
    finally:
        gdb.execute(f"set trust-readonly-sections {'on' if trusted else 'off'}", to_string=True)
    return exits_in(listing, vmd_arch.current())


def exits_in(listing: str, arch: vmd_arch.Arch) -> tuple[list[int], list[int]]:
    """Return the exits in the output of GDB's `disassemble`; see `exits`."""
    lines = [(int(found[1], 16), found) for found in _INSTRUCTION.finditer(listing)]
    inside = {address for address, _ in lines}
    returned, elsewhere = [], []
    for address, found in lines:
        name, target = found[2], int(found[3], 16) if found[3] else None
        end = listing.find("\n", found.end())
        jumps = re.fullmatch(arch.jumps, name) is not None
        thunk = any(each in listing[found.end() : end] for each in arch.return_thunks)
        if re.fullmatch(arch.returns, name) or (jumps and thunk):
            returned.append(address)
        elif jumps and target not in inside:
            elsewhere.append(address)
    return returned, elsewhere


def moving(address: int) -> str:
    """Return an address as a location relative to a symbol, which GDB moves when KASLR's slide is known."""
    found = gdb.execute(f"info symbol {address:#x}", to_string=True).split()
    name, offset = found[0], int(found[2]) if found[1:2] == ["+"] else 0
    place = f"(unsigned long)&{name} + {offset}"
    try:
        # If two functions have the same name, GDB may take the other one.
        moves = int(gdb.parse_and_eval(place)) & WORD == address
    except gdb.error:
        moves = False
    return f"*({place})" if moves else f"*{address:#x}"


def blocks(pc: int) -> list[gdb.Block]:
    """Return the blocks of the functions at `pc`: inlined ones, innermost first, then the enclosing one."""
    found = []
    block = gdb.block_for_pc(pc)
    while block is not None:
        found += [block] if block.function is not None else []
        block = block.superblock
    return found


def functions(pc: int) -> tuple[list[gdb.Symbol], gdb.Symbol | None]:
    """Return the functions that are inlined at `pc`, innermost first, and the enclosing function."""
    around = [block.function for block in blocks(pc) if block.function is not None]
    return around[:-1], around[-1] if around else None


def return_type(function: gdb.Symbol | None) -> gdb.Type | None:
    """Return the type of a function's return value; None if no register holds it."""
    kind = function.type if function is not None else None
    if kind is None or kind.code != gdb.TYPE_CODE_FUNC:
        return None
    target = kind.target().strip_typedefs()
    return target if target.code in (*_NUMBERS, gdb.TYPE_CODE_PTR) else None
