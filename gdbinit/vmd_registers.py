"""A stopped CPU's registers, and which of them holds a variable; without a frame.

A `gdb.Frame` costs a packet: GDB tells frames apart by what they return to as well, and reads it from the
stack. At a breakpoint that notes a few numbers and goes on no other costs as much.
"""

from __future__ import annotations

import re

import gdb
import vmd_arch

WORD = 2**64 - 1

_RANGE = re.compile(r"Range 0x([0-9a-f]+)-0x([0-9a-f]+): (.*)")
_ALONE = re.compile(r'Symbol ".*" is (.*)\.')
_REGISTER = re.compile(r"a variable in \$(\w+)")


class Registers(dict[str, int]):
    """The selected CPU's at one stop, by GDB's names, without signs; each is asked for once.

    Raises:
        gdb.error: there is no such register.
    """

    def __missing__(self, name: str) -> int:
        self[name] = number = int(gdb.parse_and_eval(f"${name}")) & WORD
        return number

    @property
    def pc(self) -> int:
        """The address of the next instruction; `$pc` takes GDB twice as long as the register itself."""
        try:
            return self[vmd_arch.current().pc]
        except gdb.error:
            return self["pc"]


def narrowed(number: int, kind: gdb.Type) -> int:
    """Return a number as its type has it: the lower bytes of the register that holds it.

    Args:
        number: The register.
        kind: An integer, an enumeration, a pointer.
    """
    bits = 8 * kind.sizeof
    number &= (1 << bits) - 1
    signed = kind.code != gdb.TYPE_CODE_PTR and kind.is_signed
    return number - (1 << bits) if signed and number >> (bits - 1) else number


def holding(name: str, pc: int) -> str | None:
    """Return the register that a variable lies in; None where it lies elsewhere, or GDB's words are others.

    Args:
        name: Of the selected frame's.
        pc: Where that frame is.
    """
    return holding_in(gdb.execute(f"info address {name}", to_string=True), pc)


def holding_in(said: str, pc: int) -> str | None:
    """Return the register in what GDB's `info address` printed; see `holding`."""
    alone = _ALONE.match(said)
    places = [alone[1]] if alone else []
    places += [place for low, high, place in _RANGE.findall(said) if int(low, 16) <= pc < int(high, 16)]
    found = _REGISTER.fullmatch(places[0]) if places else None
    return found[1] if found else None
