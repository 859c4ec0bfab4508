"""The operations of a probe's program: a machine with a stack of 64-bit numbers; see `plugin/plugin.c`."""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

WIRE = struct.Struct("<BBHIQ")
"""`struct op` of plugin.c: the code, size, number, target and value."""

WORD = 2**64 - 1


class Code(IntEnum):
    """The operations, in the order of `enum opcode` in plugin.c."""

    END = 0
    FAIL_TO = 1
    REGISTER = 2
    CONSTANT = 3
    LOAD = 4
    EXTEND = 5
    DUPLICATE = 6
    DISCARD = 7
    ADD = 8
    SUBTRACT = 9
    MULTIPLY = 10
    DIVIDE = 11
    MODULO = 12
    DIVIDE_SIGNED = 13
    MODULO_SIGNED = 14
    AND = 15
    OR = 16
    EXCLUSIVE_OR = 17
    SHIFT_LEFT = 18
    SHIFT_RIGHT = 19
    SHIFT_RIGHT_SIGNED = 20
    NEGATE = 21
    INVERT = 22
    NOT = 23
    EQUAL = 24
    LESS = 25
    LESS_SIGNED = 26
    LESS_OR_EQUAL = 27
    LESS_OR_EQUAL_SIGNED = 28
    JUMP = 29
    JUMP_IF_ZERO = 30
    PUT = 31
    PUT_STRING = 32
    PUT_MEMORY = 33
    FILTER = 34
    SAME_STRING = 35
    CPU = 36
    PUT_REGISTER = 37
    PUT_STACK = 38
    PC = 39
    PUT_FRAMES = 40


_JUMPS = (Code.FAIL_TO, Code.JUMP, Code.JUMP_IF_ZERO)


class Op(msgspec.Struct, frozen=True, array_like=True):
    """One operation.

    Args:
        code: What it does.
        size: Bytes to load, or bits to keep.
        number: A register, the index of a value, or 1 for a signed number.
        target: The index of the operation to jump to in the program; the offset of a string in the text; or
            the register of PUT_REGISTER.
        value: A constant, an offset, or a size.
    """

    code: Code
    size: int = 0
    number: int = 0
    target: int = 0
    value: int = 0

    def packed(self, base: int) -> bytes:
        """Return it as plugin.c reads it, in a program that begins at `base`."""
        target = self.target + base if self.code in _JUMPS else self.target
        return WIRE.pack(self.code, self.size, self.number, target, self.value & WORD)


class Label:
    """A place in a program to jump to; `Program.mark` sets it."""

    def __init__(self) -> None:
        self.at = 0


class Program:
    """A program that is being written.

    Args:
        registers: The registers that the whole request reads, in order; operations refer to their index.
        text: The bytes of the strings that the request compares with.
    """

    def __init__(self, registers: list[str], text: bytearray) -> None:
        self._registers = registers
        self._text = text
        self._ops: list[tuple[Op, Label | None]] = []
        self._marked = 0

    def __call__(self, code: Code, *, size: int = 0, number: int = 0, value: int = 0) -> None:
        """Append an operation."""
        self._ops.append((Op(code, size, number, 0, value & WORD), None))

    def jump(self, code: Code, label: Label) -> None:
        """Append a jump to a label."""
        self._ops.append((Op(code), label))

    def mark(self, label: Label) -> None:
        """Set a label to the next operation."""
        label.at = self._marked = len(self._ops)

    def register(self, name: str) -> None:
        """Push a register's value."""
        if name not in self._registers:
            self._registers.append(name)
        self(Code.REGISTER, number=self._registers.index(name))

    def put(self, index: int) -> None:
        """Move the number on the stack into the record, as the value of that index."""
        last = self._ops[-1][0] if self._ops else Op(Code.END)
        if last.code is Code.REGISTER and self._marked != len(self._ops):
            # Most arguments are in a register: one operation is twice as fast as two.
            self._ops[-1] = (Op(Code.PUT_REGISTER, 0, index, last.number), None)
        else:
            self(Code.PUT, number=index)

    def same_string(self, text: bytes) -> None:
        """Replace the address on the stack by 1 if this string, with its end, is there; otherwise by 0."""
        at = len(self._text)
        self._text += text + b"\0"
        self._ops.append((Op(Code.SAME_STRING, 0, 0, at, len(text) + 1), None))

    def finished(self) -> tuple[Op, ...]:
        """Return the operations, with END after the last one."""
        self(Code.END)
        return tuple(
            op if label is None else msgspec.structs.replace(op, target=label.at) for op, label in self._ops
        )
