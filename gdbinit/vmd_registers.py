"""Registers of a stopped CPU, and the register that holds a variable, without creating a frame.

A `gdb.Frame` costs a packet: GDB identifies a frame by its caller too, and reads the return address from the
stack. For a breakpoint that records a few numbers and continues, that is the highest cost.
"""

from __future__ import annotations

import re

import gdb
import vmd_arch

WORD = 2**64 - 1


def word() -> gdb.Type:
    """Return the type of an unsigned register. By a type's name, GDB would look into the vmlinux first."""
    return integer(64)


def integer(bits: int) -> gdb.Type:
    """Return the unsigned integer type of a size in bits."""
    return gdb.selected_inferior().architecture().integer_type(bits, False)


class FrameId:
    """The data with which GDB identifies a frame that an unwinder has found.

    Args:
        sp: A stack pointer that no other frame of the same function has.
        pc: The start of the function.
    """

    def __init__(self, sp: gdb.Value | int, pc: gdb.Value | int) -> None:
        self.sp, self.pc = (gdb.Value(each).cast(word()) for each in (sp, pc))


_RANGE = re.compile(r"Range 0x([0-9a-f]+)-0x([0-9a-f]+): (.*)")
_ALONE = re.compile(r'Symbol ".*" is (.*)\.')
_REGISTER = re.compile(r"a variable in \$(\w+)")


class Registers(dict[str, int]):
    """The selected CPU's registers at one stop, by GDB's names, as unsigned numbers; each is read once.

    Raises:
        gdb.error: there is no such register.
    """

    def __missing__(self, name: str) -> int:
        self[name] = number = int(gdb.parse_and_eval(f"${name}")) & WORD
        return number

    @property
    def pc(self) -> int:
        """The program counter; GDB takes twice as long for `$pc` as for the register's own name."""
        try:
            return self[vmd_arch.current().pc]
        except gdb.error:
            return self["pc"]


def narrowed(number: int, kind: gdb.Type) -> int:
    """Return the value of a type in a register: its lower bytes, with the type's sign.

    Args:
        number: The register's value.
        kind: An integer, an enumeration or a pointer type.
    """
    bits = 8 * kind.sizeof
    number &= (1 << bits) - 1
    signed = kind.code != gdb.TYPE_CODE_PTR and kind.is_signed
    return number - (1 << bits) if signed and number >> (bits - 1) else number


def holding(name: str, pc: int) -> str | None:
    """Return the register that holds a variable; None if it is elsewhere, or GDB's output is not understood.

    Args:
        name: A variable in the selected frame.
        pc: The frame's program counter.
    """
    return holding_in(gdb.execute(f"info address {name}", to_string=True), pc)


def holding_in(said: str, pc: int) -> str | None:
    """Return the register in the output of GDB's `info address`; see `holding`."""
    alone = _ALONE.match(said)
    places = [alone[1]] if alone else []
    places += [place for low, high, place in _RANGE.findall(said) if int(low, 16) <= pc < int(high, 16)]
    found = _REGISTER.fullmatch(places[0]) if places else None
    return found[1] if found else None
