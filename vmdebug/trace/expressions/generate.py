"""Writes the operations of an expression at a place. They compute as C does, with 64-bit numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from vmdebug.arch import Arch
from vmdebug.trace.expressions import dwarf, syntax, types
from vmdebug.trace.expressions.dwarf import Scope
from vmdebug.trace.expressions.operations import Code, Label, Program
from vmdebug.trace.expressions.syntax import Node, NotCompiledError
from vmdebug.trace.expressions.types import INT, LONG, UNSIGNED, UNSIGNED_LONG, Type

LARGEST_ARRAY = 4096
"""The longest array of characters that a record may have, in bytes; plugin.c has the same number."""

_WORD_BITS = 64


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """How a record stores the value of an expression.

    Args:
        kind: A number in 8 bytes; a string with its length; the bytes of an array of characters, or of a
            floating-point number.
        size: The number of these bytes.
    """

    kind: Literal["signed", "unsigned", "string", "array", "float"]
    size: int = 8


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an expression needs to know about the guest.

    Args:
        row: Its architecture.
        slide: How far KASLR has moved the kernel, in bytes.
        task: Pushes the address of the task that the CPU runs; None if the vmlinux does not tell where it is.
    """

    row: Arch
    slide: int
    task: Callable[[Program], None] | None = None


class UnavailableError(NotCompiledError):
    """A variable has no value at that instruction."""


class _Operand(msgspec.Struct, frozen=True, kw_only=True):
    """What the top of the stack means.

    Args:
        type: The type of the operand.
        memory: Whether the operand is in memory, `offset` bytes after the address on the stack; otherwise the
            stack has its value.
        offset: See `memory`.
        bits: The size of a bit field; None for other operands.
        shift: Its first bit at that address.
    """

    type: Type
    memory: bool = False
    offset: int = 0
    bits: int | None = None
    shift: int = 0


class Generator:
    """Writes the operations of the expressions at one place.

    Args:
        program: The program to write to.
        scope: The place.
        facts: Facts about the guest.
    """

    def __init__(self, program: Program, scope: Scope, facts: Facts) -> None:
        self._program = program
        self._scope = scope
        self._unit = scope.unit
        self._facts = facts
        self._text = ""
        self._writers: dict[type, Callable[[Any], _Operand]] = {
            syntax.Number: self._number,
            syntax.Name: lambda node: self._name(node.name),
            syntax.Unary: lambda node: self._unary(node.operator, node.operand),
            syntax.Binary: self._binary,
            syntax.Choice: self._choice,
            syntax.Member: self._member,
            syntax.Index: self._index,
            syntax.Cast: self._cast,
            syntax.SizeOf: self._size_of,
            syntax.ContainerOf: self._container_of,
            syntax.SameString: self._same_string,
            syntax.Text: self._text_alone,
        }

    def put(self, text: str, index: int) -> Shape:
        """Write the value of an expression into the record; without a value if its memory cannot be read.

        Args:
            text: The expression.
            index: Its index among the probe's.

        Raises:
            NotCompiledError: see its message.
        """
        after = Label()
        self._program.jump(Code.FAIL_TO, after)
        shape = self._put(self._parsed(text), index)
        self._program.mark(after)
        return shape

    def condition(self, text: str) -> None:
        """Write a condition: the hit is not recorded if it is false, or cannot be evaluated.

        Raises:
            NotCompiledError: see its message.
        """
        operand = self._value(self._parsed(text))
        if not operand.type.is_number:
            raise self._error("the condition is not a number")
        self._program(Code.FILTER)

    def _parsed(self, text: str) -> Node:
        self._text = text
        words = syntax.names(text)
        return syntax.parse(text, {each for each in words if each in self._unit.typedefs})

    def _error(self, why: str) -> NotCompiledError:
        return NotCompiledError(f"{self._text}: {why}")

    def _put(self, node: Node, index: int) -> Shape:
        operand = self._operand(node)
        kind = operand.type
        if kind.kind == "array" and operand.memory and kind.target.name in ("char", "unsigned char"):
            size = (kind.length or 0) * kind.target.size
            if not 0 < size <= LARGEST_ARRAY:
                raise self._error(f"an array of {size} characters: only 1 to {LARGEST_ARRAY} can be recorded")
            self._address(operand)
            self._program(Code.PUT_MEMORY, number=index, value=size)
            return Shape("array", size)
        if kind.kind == "float" and operand.memory and kind.size in (4, 8):
            self._address(operand)
            self._program(Code.PUT_MEMORY, number=index, value=kind.size)
            return Shape("float", kind.size)
        if not kind.is_number:
            raise self._error(f"a value of type {kind.name or kind.kind} is not a number or a string")
        self._load(operand)
        if kind.kind == "pointer" and kind.target.is_char and kind.target.name == "char":
            self._program(Code.PUT_STRING, number=index)
            return Shape("string")
        self._program.put(index)
        return Shape("signed" if kind.signed else "unsigned")

    # Operands

    def _value(self, node: Node) -> _Operand:
        """Push a number: an array becomes the address of its first element."""
        return self._load(self._operand(node))

    def _load(self, operand: _Operand) -> _Operand:
        if not operand.memory:
            return operand
        kind = operand.type
        if kind.kind in ("array", "function"):
            self._address(operand)
            return _Operand(type=(kind.target if kind.kind == "array" else kind).pointer())
        if not kind.is_number or kind.size not in (1, 2, 4, 8):
            raise self._error(f"a value of type {kind.name or kind.kind} is not a number")
        if operand.bits is None:
            self._program(Code.LOAD, size=kind.size, number=kind.signed, value=operand.offset)
            return _Operand(type=kind)
        size = next((each for each in (1, 2, 4, 8) if 8 * each >= operand.shift + operand.bits), 0)
        if not size:
            raise self._error("a bit field that crosses 8 bytes is not supported")
        self._program(Code.LOAD, size=size, value=operand.offset)
        self._program(Code.EXTEND, size=operand.bits, number=kind.signed, value=operand.shift)
        return _Operand(type=kind)

    def _address(self, operand: _Operand) -> None:
        """Replace the address before an operand in memory by the operand's own address."""
        if operand.offset:
            self._program(Code.CONSTANT, value=operand.offset)
            self._program(Code.ADD)

    def _converted(self, operand: _Operand, kind: Type) -> _Operand:
        """Convert the number on the stack to a type."""
        if kind.kind == "bool":
            self._truth()
        elif kind.size < 8 and (kind.size < operand.type.size or kind.signed != operand.type.signed):  # noqa: PLR2004
            self._program(Code.EXTEND, size=8 * kind.size, number=kind.signed)
        return _Operand(type=kind)

    def _truth(self) -> None:
        self._program(Code.NOT)
        self._program(Code.NOT)

    def _operand(self, node: Node) -> _Operand:
        """Push an operand: the address of one in memory, the value of another one."""
        return self._writers[type(node)](node)

    def _index(self, node: syntax.Index) -> _Operand:
        return self._pointed(self._sum(self._value(node.of), "+", node.at))

    def _size_of(self, node: syntax.SizeOf) -> _Operand:
        kind = self._unit.complete(self._unit.type_named(node.kind))
        return self._constant(kind.size, UNSIGNED_LONG)

    def _same_string(self, node: syntax.SameString) -> _Operand:
        self._value(node.of)
        self._program.same_string(node.text)
        return _Operand(type=INT)

    def _text_alone(self, _node: syntax.Text) -> _Operand:
        raise self._error('a string can only be compared: $_streq(x, "text")')

    def _constant(self, value: int, kind: Type) -> _Operand:
        self._program(Code.CONSTANT, value=value)
        return _Operand(type=kind)

    def _number(self, node: syntax.Number) -> _Operand:
        kinds = (INT, UNSIGNED, LONG, UNSIGNED_LONG)
        for kind in kinds:
            fits = node.value < 1 << (8 * kind.size - kind.signed)
            if fits and not (node.unsigned and kind.signed) and not (node.long and kind.size < LONG.size):
                return self._constant(node.value, kind)
        raise self._error(f"{node.value} has more than 64 bits")

    def _name(self, name: str) -> _Operand:
        if name.startswith("$"):
            return self._word(name)
        variable = self._scope.variable(name)
        if variable is not None:
            return self._variable(name, variable)
        found = self._unit.variable(name)
        if found is not None:
            entry, address = found
            self._program(Code.CONSTANT, value=address + self._facts.slide)
            return _Operand(type=self._unit.complete(dwarf.type_of(entry)), memory=True)
        enumerator = self._unit.enumerator(name)
        if enumerator is not None:
            return self._constant(enumerator[1], enumerator[0])
        known = ", ".join(self._scope.variables())
        raise self._error(
            f"the function's file has no variable or enumerator {name}; the function has {known or 'none'}"
        )

    def _word(self, name: str) -> _Operand:
        if name == "$cpu":
            self._program(Code.CPU)
            return _Operand(type=INT)
        if name in ("$task", "$comm") and self._facts.task is not None:
            self._facts.task(self._program)
            kind = self._unit.type_named(syntax.TypeName(("struct", "task_struct")))
            if name == "$task":
                return _Operand(type=kind.pointer())
            return self._part(_Operand(type=kind, memory=True), "comm")
        raise self._error(f"only GDB knows {name}")

    def _variable(self, name: str, entry: object) -> _Operand:
        kind = self._unit.complete(dwarf.type_of(entry))
        place = self._unit.location(entry, self._scope.address)
        registers = self._facts.row.dwarf_registers
        if (
            place is None
            or (place.register or 0) >= len(registers)
            or (place.frame and not self._scope.entry)
        ):
            raise UnavailableError(f"{self._text}: {name} is neither in a register nor in memory there")
        if place.constant is not None:
            return self._constant(place.constant, kind)
        if place.offset is None:
            self._program.register(registers[place.register or 0])
            return self._narrowed(name, kind)
        if place.frame:
            # The canonical frame address: the stack pointer before the call; DWARF 5, 6.4.
            debug = self._facts.row.debug
            self._program.register(debug.sp)
            return _Operand(type=kind, memory=True, offset=place.offset + debug.return_address_bytes)
        if place.register is not None:
            self._program.register(registers[place.register])
            return _Operand(type=kind, memory=True, offset=place.offset)
        self._program(Code.CONSTANT, value=place.offset + self._facts.slide)
        return _Operand(type=kind, memory=True)

    def _narrowed(self, name: str, kind: Type) -> _Operand:
        """Keep the part of a register that a variable takes."""
        if not kind.is_number:
            raise UnavailableError(f"{self._text}: {name} of type {kind.name or kind.kind} is in a register")
        if kind.size < 8:  # noqa: PLR2004 - bytes of a register
            self._program(Code.EXTEND, size=8 * kind.size, number=kind.signed)
        return _Operand(type=kind)

    def _pointed(self, operand: _Operand) -> _Operand:
        """Return what the pointer on the stack points to."""
        kind = operand.type
        if kind.kind != "pointer":
            raise self._error(f"a value of type {kind.name or kind.kind} is not a pointer")
        return _Operand(type=self._unit.complete(kind.target), memory=True)

    def _member(self, node: syntax.Member) -> _Operand:
        of = self._operand(node.of)
        if of.type.kind in ("pointer", "array"):
            of = self._pointed(self._load(of))
        return self._part(of, node.name)

    def _part(self, of: _Operand, name: str) -> _Operand:
        if of.type.kind != "struct" or not of.memory:
            raise self._error(
                f"a value of type {of.type.name or of.type.kind} has no members, such as {name}"
            )
        found = self._unit.complete(of.type).member(name)
        if found is None:
            raise self._error(f"{of.type.name} has no member {name}")
        member, offset = found
        return _Operand(
            type=self._unit.complete(member.type),
            memory=True,
            offset=of.offset + offset,
            bits=member.bits,
            shift=member.shift,
        )

    def _cast(self, node: syntax.Cast) -> _Operand:
        kind = self._unit.type_named(node.kind)
        if not kind.is_number:
            raise self._error(f"a cast to {kind.name or kind.kind} is not supported")
        return self._converted(self._value(node.operand), kind)

    def _container_of(self, node: syntax.ContainerOf) -> _Operand:
        self._value(node.pointer)
        whole = self._unit.complete(self._unit.type_named(node.kind))
        part = _Operand(type=whole, memory=True)
        for name in node.member.split("."):
            part = self._part(part, name)
        if part.offset:
            self._program(Code.CONSTANT, value=part.offset)
            self._program(Code.SUBTRACT)
        return _Operand(type=whole.pointer())

    # Operators

    def _unary(self, operator: str, operand: Node) -> _Operand:
        if operator == "*":
            return self._pointed(self._value(operand))
        if operator == "&":
            found = self._operand(operand)
            if not found.memory or found.bits is not None:
                raise self._error("it has no address")
            self._address(found)
            return _Operand(type=found.type.pointer())
        value = self._value(operand)
        if operator == "!":
            self._program(Code.NOT)
            return _Operand(type=INT)
        kind = types.promoted(value.type)
        self._converted(value, kind)
        if operator != "+":
            self._program(Code.NEGATE if operator == "-" else Code.INVERT)
            self._wrap(kind)
        return _Operand(type=kind)

    def _wrap(self, kind: Type) -> None:
        """Reduce the result of an operation to its type."""
        if kind.size < 8:  # noqa: PLR2004 - bytes on the stack
            self._program(Code.EXTEND, size=8 * kind.size, number=kind.signed)

    def _logical(self, node: syntax.Binary) -> _Operand:
        """Write `a && b` or `a || b`: if the first decides the result, the second is not evaluated."""
        other, end = Label(), Label()
        self._value(node.left)
        if node.operator == "||":
            self._program(Code.NOT)
        self._program.jump(Code.JUMP_IF_ZERO, other)
        self._value(node.right)
        self._truth()
        self._program.jump(Code.JUMP, end)
        self._program.mark(other)
        self._constant(int(node.operator == "||"), INT)
        self._program.mark(end)
        return _Operand(type=INT)

    def _choice(self, node: syntax.Choice) -> _Operand:
        other, end = Label(), Label()
        self._value(node.condition)
        self._program.jump(Code.JUMP_IF_ZERO, other)
        yes = self._value(node.yes)
        self._program.jump(Code.JUMP, end)
        self._program.mark(other)
        no = self._value(node.no)
        self._program.mark(end)
        if yes.type.kind == "pointer" or no.type.kind == "pointer":
            return yes if yes.type.kind == "pointer" else no
        return _Operand(type=types.common(yes.type, no.type))

    def _binary(self, node: syntax.Binary) -> _Operand:
        if node.operator in ("&&", "||"):
            return self._logical(node)
        operator, left = node.operator, self._value(node.left)
        if operator in ("+", "-"):
            return self._sum(left, operator, node.right)
        if operator in ("<<", ">>"):
            kind = types.promoted(left.type)
            self._converted(left, kind)
            self._value(node.right)
            to_right = Code.SHIFT_RIGHT_SIGNED if kind.signed else Code.SHIFT_RIGHT
            self._program(Code.SHIFT_LEFT if operator == "<<" else to_right)
            self._wrap(kind)
            return _Operand(type=kind)
        kind = types.common(left.type, self._type_of(node.right))
        self._converted(left, kind)
        self._converted(self._value(node.right), kind)
        if operator in _COMPARISONS:
            return self._compared(operator, signed=kind.signed)
        plain, signed = _ARITHMETIC[operator]
        self._program(signed if kind.signed else plain)
        self._wrap(kind)
        return _Operand(type=kind)

    def _type_of(self, node: Node) -> Type:
        """Return the type of a numeric expression, without writing operations."""
        kept, self._program = self._program, Program([], bytearray())
        try:
            return self._value(node).type
        finally:
            self._program = kept

    def _compared(self, operator: str, *, signed: bool) -> _Operand:
        code, negated = _COMPARISONS[operator]
        if signed:
            code = {Code.LESS: Code.LESS_SIGNED, Code.LESS_OR_EQUAL: Code.LESS_OR_EQUAL_SIGNED}.get(
                code, code
            )
        self._program(code)
        if negated:
            self._program(Code.NOT)
        return _Operand(type=INT)

    def _sum(self, left: _Operand, operator: str, right: Node) -> _Operand:
        """Add or subtract, in units of what a pointer points to."""
        code = Code.ADD if operator == "+" else Code.SUBTRACT
        other = self._type_of(right)
        if left.type.kind == "pointer":
            unit = max(self._unit.complete(left.type.target).size, 1)
            self._value(right)
            if other.kind == "pointer":
                self._program(code)
                self._constant(unit, LONG)
                self._program(Code.DIVIDE_SIGNED)
                return _Operand(type=LONG)
            if unit > 1:
                self._constant(unit, LONG)
                self._program(Code.MULTIPLY)
            self._program(code)
            return left
        if other.kind == "pointer":
            raise self._error("write the pointer first: pointer + number")
        kind = types.common(left.type, other)
        self._converted(left, kind)
        self._converted(self._value(right), kind)
        self._program(code)
        self._wrap(kind)
        return _Operand(type=kind)


_COMPARISONS: dict[str, tuple[Code, bool]] = {
    "==": (Code.EQUAL, False),
    "!=": (Code.EQUAL, True),
    "<": (Code.LESS, False),
    "<=": (Code.LESS_OR_EQUAL, False),
    ">": (Code.LESS_OR_EQUAL, True),
    ">=": (Code.LESS, True),
}
"""The operation of each comparison, and whether to negate its result."""

_ARITHMETIC: dict[str, tuple[Code, Code]] = {
    "*": (Code.MULTIPLY, Code.MULTIPLY),
    "/": (Code.DIVIDE, Code.DIVIDE_SIGNED),
    "%": (Code.MODULO, Code.MODULO_SIGNED),
    "&": (Code.AND, Code.AND),
    "|": (Code.OR, Code.OR),
    "^": (Code.EXCLUSIVE_OR, Code.EXCLUSIVE_OR),
}
"""The operation of each operator, for numbers without and with a sign."""
