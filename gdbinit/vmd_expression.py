"""Evaluates a variable or its fields at a trace hit, without GDB's parser and mostly without a frame."""

from __future__ import annotations

import re
from typing import Any

import gdb
import vmd_registers
import vmd_trace_variables
import vmd_value
from vmd_registers import WORD, Registers

STRING_LIMIT = 256
"""Maximum number of bytes of a string that a hit records."""

_NUMBERS = (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR, gdb.TYPE_CODE_BOOL, gdb.TYPE_CODE_ENUM)
_WORD = 8
_REGISTER = re.compile(r"\$([a-z]\w*)")
_PATH = re.compile(r"(\*?)([A-Za-z_]\w*)((?:(?:->|\.)[A-Za-z_]\w*)*)")


class Variable:
    """A variable at one address of the code, and the register that holds it there, if one does.

    Args:
        symbol: A symbol of the selected frame, or a global one.
        kind: Its type, without typedefs.
        pc: The frame's program counter.
    """

    def __init__(self, symbol: gdb.Symbol, kind: gdb.Type, pc: int) -> None:
        self._symbol = symbol
        self._kind = kind
        self._is_pointer = kind.code == gdb.TYPE_CODE_PTR
        fits = self._is_pointer or kind.code in _NUMBERS
        self._register = vmd_registers.holding(symbol.name, pc) if fits else None
        self._is_string = self._is_pointer and _element(kind) == "char"

    @property
    def valid(self) -> bool:
        """Whether the symbol table that it was found in is still loaded."""
        return self._symbol.is_valid()

    def number(self, registers: Registers) -> int | None:
        """Return its value, if that is a number or an address in a register; else None."""
        if self._register is None or self._is_string:
            return None
        return vmd_registers.narrowed(registers[self._register], self._kind)

    def value(self, registers: Registers) -> gdb.Value:
        """Return its value as a gdb.Value."""
        if self._register is not None and self._is_pointer:
            return gdb.Value(registers[self._register]).cast(self._kind)
        if self._symbol.needs_frame:
            return self._symbol.value(gdb.selected_frame())
        return self._symbol.value()


class Expression:
    """An expression that a hit records.

    Args:
        text: The expression, in the language of the code.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.why = ""
        """The first error of an evaluation; memory that cannot be read is not one."""
        self._evaluated = vmd_trace_variables.comparable(text)
        register = _REGISTER.fullmatch(text)
        self._register = register[1] if register else ""
        path = _PATH.fullmatch(text)
        self._points, self._name, fields = path.groups() if path else ("", "", "")
        self._fields = re.findall(r"\w+", fields)
        self._variables: dict[int, Variable] = {}

    def note(self, registers: Registers) -> Any:
        """Return its value for JSON; None if it was optimised out or cannot be read."""
        try:
            variable = self._variable(registers.pc) if self._name else None
            if variable is None:
                value = gdb.parse_and_eval(self._evaluated)
                # To GDB a register is signed, and a kernel address in it would be a negative number.
                whole = self._register and value.type.code == gdb.TYPE_CODE_INT and value.type.sizeof == _WORD
                return registers[self._register] if whole else plain(value)
            number = variable.number(registers) if self.text == self._name else None
            return number if number is not None else plain(self._followed(variable.value(registers)))
        except gdb.MemoryError:
            return None
        except (gdb.error, TypeError) as error:  # TypeError if it names a type
            self.why = self.why or str(error)
            return None

    def _followed(self, value: gdb.Value) -> gdb.Value:
        for field in self._fields:
            value = value[field]
        return value.dereference() if self._points else value

    def _variable(self, pc: int) -> Variable | None:
        known = self._variables.get(pc)
        if known is not None and known.valid:
            return known
        symbol = gdb.lookup_symbol(self._name)[0]
        if symbol is None or symbol.type is None:
            return None
        self._variables[pc] = found = Variable(symbol, symbol.type.strip_typedefs(), pc)
        return found


def plain(value: gdb.Value) -> Any:
    """Return a value for JSON: a number, a string, or else GDB's text of it.

    Raises:
        gdb.error: it cannot be read.
    """
    kind = value.type.strip_typedefs()
    if value.is_optimized_out or kind.code == gdb.TYPE_CODE_VOID:
        found: Any = None
    elif kind.code in _NUMBERS:
        found = int(value)
    elif kind.code == gdb.TYPE_CODE_PTR:
        found = _pointed(int(value) & WORD, kind)
    elif kind.code == gdb.TYPE_CODE_FLT:
        found = float(value)
    elif kind.code == gdb.TYPE_CODE_ARRAY and _element(kind) in ("char", "unsigned char"):
        # The kernel has names of both types: d_iname is unsigned.
        # Latin-1 keeps each byte: what follows the end of the string is arbitrary.
        text = value.string("latin-1", length=kind.sizeof).encode("latin-1")
        found = text.partition(b"\0")[0].decode(errors="replace")
    else:
        found = value.format_string(max_depth=1)
    return found


def _pointed(address: int, kind: gdb.Type) -> int | str:
    if _element(kind) != "char":
        return address
    try:
        return vmd_value.string(address, STRING_LIMIT).decode(errors="replace")
    except gdb.error:
        return address


def _element(kind: gdb.Type) -> str:
    return str(kind.target().strip_typedefs().unqualified())
