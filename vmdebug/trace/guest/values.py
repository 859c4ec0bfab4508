"""Turns the operations of a probe into what tracefs fetches, and what vmdebug computes from it afterwards.

tracefs evaluates no C: at a hit it stores registers, and memory that a chain of pointers with constant
offsets leads to (Documentation/trace/kprobetrace.rst). The operations are executed here once, with symbols in
place of numbers: what they read becomes a fetch argument, and what they compute becomes a tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import msgspec

from vmdebug.trace.expressions.operations import WORD, Code, Op
from vmdebug.trace.expressions.syntax import NotCompiledError

LONGEST_FETCH = 63
"""Characters of a fetch argument: MAX_ARGSTR_LEN of kernel/trace/trace_probe.h."""

_BITS = (8, 16, 32)
_DIVISIONS = (Code.DIVIDE, Code.MODULO, Code.DIVIDE_SIGNED, Code.MODULO_SIGNED)
_WORD_BYTES = 8


class Constant(msgspec.Struct, frozen=True):
    """A number; addresses of global variables are numbers, too."""

    value: int


class Register(msgspec.Struct, frozen=True):
    """The lower bytes of a register, by its name in the compiled trace."""

    name: str
    size: int = _WORD_BYTES
    signed: bool = False


class Loaded(msgspec.Struct, frozen=True):
    """A number in memory, `offset` bytes after an address."""

    address: Value
    offset: int
    size: int
    signed: bool = False


class Cpu(msgspec.Struct, frozen=True):
    """The number of the CPU."""


class Computed(msgspec.Struct, frozen=True):
    """An operation on other values; `op` has its size, sign and constant."""

    op: Op
    operands: tuple[Value, ...]


class Either(msgspec.Struct, frozen=True):
    """One of two values; the other one is not evaluated."""

    condition: Value
    yes: Value
    no: Value


class SameText(msgspec.Struct, frozen=True):
    """Whether a string with its end is at an address."""

    address: Value
    text: bytes


Value: TypeAlias = Constant | Register | Loaded | Cpu | Computed | Either | SameText


class Put(msgspec.Struct, frozen=True):
    """What a program does with a value.

    Args:
        kind: Records a number, the string or the `size` bytes at an address; or ends the hit if it is 0.
        index: The index of the expression.
        value: The number or the address.
        size: See `kind`.
    """

    kind: Literal["number", "string", "memory", "condition"]
    index: int
    value: Value
    size: int = 0


def executed(code: Sequence[Op], registers: Sequence[str], text: bytes) -> list[Put]:
    """Execute a program with symbols, and return what it records.

    Args:
        code: The program.
        registers: The names of the registers that it reads.
        text: The strings that it compares with.
    """
    return _Machine(code, registers, text).result()


class _Machine:
    def __init__(self, code: Sequence[Op], registers: Sequence[str], text: bytes) -> None:
        self._code = code
        self._registers = registers
        self._text = text
        self._puts: list[Put] = []

    def result(self) -> list[Put]:
        self._run(0, len(self._code), [])
        return self._puts

    def _run(self, at: int, end: int, stack: list[Value]) -> list[Value]:
        """Execute the operations from `at` to `end`, and return the stack after them."""
        while at < end:
            op = self._code[at]
            if op.code is Code.JUMP_IF_ZERO:
                at, stack = self._branch(at, op, stack)
                continue
            self._step(op, stack)
            at += 1
        return stack

    def _branch(self, at: int, op: Op, stack: list[Value]) -> tuple[int, list[Value]]:
        """Execute both sides of a branch, and return where they meet, and the stack there.

        The generator writes JUMP_IF_ZERO other; …; JUMP end; other: …; end.
        """
        condition, rest = stack[-1], stack[:-1]
        end = self._code[op.target - 1].target
        yes = self._run(at + 1, op.target - 1, list(rest))
        no = self._run(op.target, end, list(rest))
        return end, [a if a == b else Either(condition, a, b) for a, b in zip(yes, no, strict=True)]

    def _step(self, op: Op, stack: list[Value]) -> None:
        if op.code in (Code.END, Code.FAIL_TO):
            return  # each value finds out for itself whether its memory could be read
        if op.code is Code.PUT_REGISTER:
            self._puts.append(Put("number", op.number, Register(self._registers[op.target])))
        elif op.code in _PUTS:
            index = op.number if op.code is not Code.FILTER else -1
            self._puts.append(Put(_PUTS[op.code], index, stack.pop(), op.value))
        elif op.code is Code.DISCARD:
            stack.pop()
        elif op.code is Code.DUPLICATE:
            stack.append(stack[-1])
        elif op.code in (Code.CONSTANT, Code.REGISTER, Code.CPU):
            stack.append(self._source(op))
        elif op.code is Code.LOAD:
            stack.append(Loaded(stack.pop(), signed64(op.value), op.size, bool(op.number)))
        elif op.code is Code.SAME_STRING:
            stack.append(SameText(stack.pop(), self._text[op.target : op.target + op.value - 1]))
        else:
            count = 1 if op.code in _UNARY else 2
            operands = tuple(stack[-count:])
            stack[-count:] = [_simple(op, operands)]

    def _source(self, op: Op) -> Value:
        if op.code is Code.CONSTANT:
            return Constant(op.value)
        return Cpu() if op.code is Code.CPU else Register(self._registers[op.number])


_PUTS: dict[Code, Literal["number", "string", "memory", "condition"]] = {
    Code.PUT: "number",
    Code.PUT_STRING: "string",
    Code.PUT_MEMORY: "memory",
    Code.FILTER: "condition",
}

_UNARY = (Code.EXTEND, Code.NEGATE, Code.INVERT, Code.NOT)


def _simple(op: Op, operands: tuple[Value, ...]) -> Value:
    """Return an operation; a simpler value if its operands are constants, or it keeps a part of a number."""
    numbers = [each.value for each in operands if isinstance(each, Constant)]
    if len(numbers) == len(operands) and (op.code not in _DIVISIONS or numbers[1]):
        return Constant(compute(op, *numbers))
    (first, *_) = operands
    if op.code is Code.EXTEND and op.size in _BITS and not op.value and isinstance(first, Register | Loaded):
        size = op.size // 8
        if size < first.size or (size == first.size and bool(op.number) != first.signed):
            return msgspec.structs.replace(first, size=size, signed=bool(op.number))
    return Computed(op, operands)


def compute(op: Op, *operands: int) -> int:
    """Return what an operation leaves on the stack; see `run` of plugin.c.

    Args:
        op: The operation.
        *operands: The numbers on the stack, without sign.

    Raises:
        ZeroDivisionError: it divides by zero.
    """
    if op.code is Code.EXTEND:
        part = operands[0] >> op.value & (1 << op.size) - 1
        return part | (WORD << op.size & WORD if op.number and part >> (op.size - 1) else 0)
    if len(operands) == 1:
        (a,) = operands
        return {Code.NEGATE: -a, Code.INVERT: ~a, Code.NOT: int(not a)}[op.code] & WORD
    return _BINARY[op.code](*operands) & WORD


def signed64(number: int) -> int:
    """Return a number of 64 bits with its sign."""
    return number - (1 << 64) if number >> 63 else number


def _quotient(a: int, b: int) -> int:
    """Return a / b as C rounds it, to zero."""
    found = abs(a) // abs(b)
    return -found if (a < 0) != (b < 0) else found


def _remainder(a: int, b: int) -> int:
    return a - _quotient(a, b) * b


_BINARY: dict[Code, Callable[[int, int], int]] = {
    Code.ADD: lambda a, b: a + b,
    Code.SUBTRACT: lambda a, b: a - b,
    Code.MULTIPLY: lambda a, b: a * b,
    Code.DIVIDE: _quotient,
    Code.MODULO: _remainder,
    Code.DIVIDE_SIGNED: lambda a, b: _quotient(signed64(a), signed64(b)),
    Code.MODULO_SIGNED: lambda a, b: _remainder(signed64(a), signed64(b)),
    Code.AND: lambda a, b: a & b,
    Code.OR: lambda a, b: a | b,
    Code.EXCLUSIVE_OR: lambda a, b: a ^ b,
    Code.SHIFT_LEFT: lambda a, b: a << min(b, 64),
    Code.SHIFT_RIGHT: lambda a, b: a >> min(b, 64),
    Code.SHIFT_RIGHT_SIGNED: lambda a, b: signed64(a) >> min(b, 63),
    Code.EQUAL: lambda a, b: int(a == b),
    Code.LESS: lambda a, b: int(a < b),
    Code.LESS_SIGNED: lambda a, b: int(signed64(a) < signed64(b)),
    Code.LESS_OR_EQUAL: lambda a, b: int(a <= b),
    Code.LESS_OR_EQUAL_SIGNED: lambda a, b: int(signed64(a) <= signed64(b)),
}


def linear(value: Value) -> tuple[Value, int]:
    """Return a value as another value plus a constant."""
    if isinstance(value, Computed) and value.op.code in (Code.ADD, Code.SUBTRACT):
        left, right = value.operands
        if isinstance(right, Constant):
            base, offset = linear(left)
            more = signed64(right.value)
            return base, offset + (more if value.op.code is Code.ADD else -more)
        if isinstance(left, Constant) and value.op.code is Code.ADD:
            base, offset = linear(right)
            return base, offset + signed64(left.value)
    return value, 0


def memory(address: Value, offset: int, names: dict[str, str], what: str) -> str:
    """Return the fetch argument for what is `offset` bytes after an address.

    Args:
        address: The address.
        offset: See there.
        names: tracefs' names of registers, by those in the trace.
        what: The expression, for errors.

    Raises:
        NotCompiledError: the address is not a chain of pointers with constant offsets, or is too long.
    """
    base, more = linear(address)
    offset += more
    match base:
        case Constant():
            return f"@{base.value + offset & WORD:#x}"
        case Register(size=8):
            return f"{offset:+d}({register(base.name, names, what)})"
        case Loaded(size=8):
            found = f"{offset:+d}({memory(base.address, base.offset, names, what)})"
            if len(found) > LONGEST_FETCH:
                raise NotCompiledError(f"{what}: the chain of pointers is too long for tracefs")
            return found
        case _:
            raise NotCompiledError(f"{what}: tracefs cannot compute the address that it reads")


def register(name: str, names: dict[str, str], what: str) -> str:
    """Return the fetch argument of a register.

    Raises:
        NotCompiledError: tracefs does not know it.
    """
    if name not in names:
        raise NotCompiledError(f"{what}: tracefs cannot read the register {name}")
    return f"%{names[name]}"
