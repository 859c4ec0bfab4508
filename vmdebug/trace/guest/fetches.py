"""The fetch arguments of an event, and functions that compute values from what they fetched.

A record is a sequence of numbers and bytes, in the order of `Fetches.fields`. A fetch argument that reads
memory stores nothing if the memory cannot be read, and the field then has old bytes of the ring buffer: so
each pointer on the way is fetched, too, and a field behind one that cannot be valid is not read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from vmdebug.trace.expressions.generate import Shape
from vmdebug.trace.expressions.operations import WORD
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.guest import values
from vmdebug.trace.guest.values import Computed, Constant, Cpu, Either, Loaded, Put, Register, SameText, Value
from vmdebug.trace.hit import Argument

Record: TypeAlias = Sequence[Any]
"""The number of the CPU, the task's pid, and the fields of an event."""

Computation: TypeAlias = Callable[[Record], Argument]
"""Returns the value of an expression."""

CPU, PID, FIRST_FIELD = 0, 1, 2
"""The places in a record."""

LOWEST_ADDRESS = 4096
"""Addresses below are never mapped, and those of the last page are error numbers (include/linux/err.h)."""

_HIGHEST_ADDRESS = (1 << 64) - 4096
_GAP = (1 << 56, (1 << 64) - (1 << 56))
"""The addresses that no architecture maps: user space is below, the kernel above."""

_LARGEST_MEMORY = 2048
"""Bytes of an array that a fetch argument reads: a record has at most 3072 (MAX_PROBE_EVENT_SIZE)."""

_ARRAY = 64
"""Elements of a fetch argument: MAX_ARRAY_LEN of kernel/trace/trace_probe.h."""

_FLOATS = {4: struct.Struct("<f"), 8: struct.Struct("<d")}


class UnreadableError(Exception):
    """A value that could not be read at that hit."""


class Field(msgspec.Struct, frozen=True):
    """A fetch argument.

    Args:
        text: Its definition, without its name.
        type: Its type, as tracefs names it.
    """

    text: str
    type: str

    @property
    def definition(self) -> str:
        """As kprobe_events reads it."""
        return self.text if self.text == "$comm" else f"{self.text}:{self.type}"


class Names(msgspec.Struct, frozen=True):
    """What the fetch arguments of a kernel can name.

    Args:
        registers: tracefs' names of registers, by those of the compiled trace.
        task: How a program reads the address of the current task; None if the vmlinux does not tell.
        pid: Offset of `pid` in it.
        comm: Offset of `comm`.
    """

    registers: dict[str, str]
    task: Value | None
    pid: int
    comm: int


def readable(address: int) -> bool:
    """Return whether there can be memory at an address."""
    if not LOWEST_ADDRESS <= address < _HIGHEST_ADDRESS:
        return False
    return address < _GAP[0] or address >= _GAP[1]


class Fetches:
    """The fetch arguments of one event; each is fetched once.

    Args:
        names: What they can name.
    """

    def __init__(self, names: Names) -> None:
        self.fields: list[Field] = []
        self._names = names
        self._functions: dict[type, Callable[[Any, str], Callable[[Record], int]]] = {
            Constant: self._constant,
            Cpu: self._cpu,
            Register: self._in_register,
            Loaded: self._loaded,
            Either: self._either,
            SameText: self._same_text,
            Computed: self._computed,
        }

    def add(self, text: str, kind: str) -> int:
        """Return the place of a fetch argument in the record."""
        field = Field(text, kind)
        if field not in self.fields:
            self.fields.append(field)
        return self.fields.index(field) + FIRST_FIELD

    def argument(self, put: Put, shape: Shape, what: str) -> Computation:
        """Return the function that gives the value of an expression.

        Raises:
            NotCompiledError: tracefs cannot fetch what it needs.
        """
        if put.kind == "string":
            return self._string(put.value, what)
        if put.kind == "memory" and shape.kind == "array":
            memory = self._memory(put.value, put.size, what)
            return lambda record: text_of(memory(record))
        if put.kind == "memory":
            floating, memory = _FLOATS[put.size], self._memory(put.value, put.size, what)
            return lambda record: floating.unpack(memory(record))[0]
        number = self.number(put.value, what)
        if shape.kind == "signed":
            return lambda record: values.signed64(number(record))
        return number

    def plain(self, put: Put, shape: Shape) -> int | None:
        """Return the place of a number that is the value of an expression as it is; None if it is computed.

        Only a number in a register is: memory may be unreadable.
        """
        value = put.value
        if put.kind != "number" or not isinstance(value, Register) or value.name not in self._names.registers:
            return None
        if value.size == 8:  # noqa: PLR2004 - bytes of a register
            value = msgspec.structs.replace(value, signed=shape.kind == "signed")
        elif value.signed and shape.kind != "signed":
            return None
        return self._register(value, "")

    def number(self, value: Value, what: str) -> Callable[[Record], int]:
        """Return the function that computes a number, without sign.

        Args:
            value: The number.
            what: The expression, for errors.

        Raises:
            NotCompiledError: tracefs cannot fetch what it needs.
        """
        return self._functions[type(value)](value, what)

    def _constant(self, value: Constant, _what: str) -> Callable[[Record], int]:
        return lambda _record: value.value

    def _cpu(self, _value: Cpu, _what: str) -> Callable[[Record], int]:
        return lambda record: record[CPU]

    def _in_register(self, value: Register, what: str) -> Callable[[Record], int]:
        place = self._register(value, what)
        return lambda record: record[place] & WORD

    def pointer(self, address: Value, what: str) -> int | None:
        """Return the place of the pointer that an address is relative to; None for that of a variable."""
        base, _ = values.linear(address)
        match base:
            case Register():
                return self._register(msgspec.structs.replace(base, signed=False), what)
            case Loaded():
                return self._memory_number(msgspec.structs.replace(base, signed=False), what)
            case _:
                return None

    def place(self, value: Register | Loaded) -> int:
        """Return the place of a number in a register or in memory."""
        return self._register(value, "") if isinstance(value, Register) else self._memory_number(value, "")

    def always_readable(self, value: Value) -> bool:
        """Return whether a value needs no memory that a pointer leads to."""
        match value:
            case Loaded():
                return self.is_pid(value) or not self.pointers(value.address)
            case Computed():
                return all(map(self.always_readable, value.operands))
            case Either():
                return all(map(self.always_readable, (value.condition, value.yes, value.no)))
            case SameText():
                return self.is_comm(value.address)
            case _:
                return True

    def is_comm(self, address: Value) -> bool:
        """Return whether an address is that of the current task's name."""
        return self._names.task is not None and values.linear(address) == (self._names.task, self._names.comm)

    def comm(self) -> int:
        """Return the place of the current task's name."""
        return self.add("$comm", "string")

    def is_pid(self, value: Value) -> bool:
        """Return whether a value is the current task's pid."""
        return (
            isinstance(value, Loaded)
            and self._names.task is not None
            and values.linear(value.address) == (self._names.task, self._names.pid - value.offset)
        )

    def _register(self, value: Register, what: str) -> int:
        text = values.register(value.name, self._names.registers, what)
        return self.add(text, _type(value.size, signed=value.signed))

    def _text(self, address: Value, offset: int, what: str) -> str:
        base, _ = values.linear(address)
        if self._names.task is not None and base == self._names.task:
            raise NotCompiledError(f"{what}: tracefs knows the pid and the name of the current task only")
        return values.memory(address, offset, self._names.registers, what)

    def _memory_number(self, value: Loaded, what: str) -> int:
        if value == self._names.task:
            raise NotCompiledError(f"{what}: tracefs knows the pid and the name of the current task only")
        return self.add(self._text(value.address, value.offset, what), _type(value.size, signed=value.signed))

    def _loaded(self, value: Loaded, what: str) -> Callable[[Record], int]:
        if self.is_pid(value):
            return lambda record: record[PID] & WORD
        place = self._memory_number(value, what)
        pointers = self.pointers(value.address, what)

        def read(record: Record) -> int:
            check(record, pointers)
            return record[place] & WORD  # type: ignore[no-any-return]

        return read

    def pointers(self, address: Value, what: str = "") -> tuple[int, ...]:
        """Return the places of all pointers on the way to an address."""
        found: tuple[int, ...] = ()
        base, _ = values.linear(address)
        if isinstance(base, Loaded):
            found = self.pointers(base.address, what)
        place = self.pointer(address, what)
        return found if place is None else (*found, place)

    def _string(self, address: Value, what: str) -> Computation:
        pointer = self.number(address, what)
        text = self._text(address, 0, what)
        place, first = self.add(text, "string"), self.add(text, "u8")
        pointers = self.pointers(address, what)

        def read(record: Record) -> Argument:
            if record[place]:
                return text_of(record[place])
            at = pointer(record)
            # tracefs does not tell an empty string of user space from one that cannot be read.
            empty = at < _GAP[0] and not record[first] and all(readable(record[each]) for each in pointers)
            return "" if empty else at  # GDB's collector gives the address, too

        return read

    def _memory(self, address: Value, size: int, what: str) -> Callable[[Record], bytes]:
        if self.is_comm(address):
            name = self.comm()
            return lambda record: string(record[name])
        if size > _LARGEST_MEMORY:
            raise NotCompiledError(f"{what}: {size} bytes; tracefs fetches at most {_LARGEST_MEMORY}")
        places, at = [], 0
        while at < size:
            width = 8 if size - at >= 8 else 1  # noqa: PLR2004 - bytes of a u64
            count = min((size - at) // width, _ARRAY)
            places.append(self.add(self._text(address, at, what), f"u{8 * width}[{count}]"))
            at += count * width
        pointers = self.pointers(address, what)

        def read(record: Record) -> bytes:
            check(record, pointers)
            return b"".join(record[place] for place in places)

        return read

    def _same_text(self, value: SameText, what: str) -> Callable[[Record], int]:
        text = value.text
        if self.is_comm(value.address):
            name = self.comm()
            return lambda record: int(string(record[name]) == text)
        place = self.add(self._text(value.address, 0, what), "string")
        pointers = self.pointers(value.address, what)

        def same(record: Record) -> int:
            check(record, pointers)
            return int(string(record[place]) == text)

        return same

    def _either(self, value: Either, what: str) -> Callable[[Record], int]:
        condition, yes, no = (self.number(each, what) for each in (value.condition, value.yes, value.no))
        return lambda record: yes(record) if condition(record) else no(record)

    def _computed(self, value: Computed, what: str) -> Callable[[Record], int]:
        op, operands = value.op, tuple(self.number(each, what) for each in value.operands)

        def computed(record: Record) -> int:
            try:
                return values.compute(op, *(each(record) for each in operands))
            except ZeroDivisionError:
                raise UnreadableError from None

        return computed


def check(record: Record, pointers: tuple[int, ...]) -> None:
    """Check the pointers on the way to a value.

    Raises:
        UnreadableError: one of them cannot be valid, so the value was not read.
    """
    for place in pointers:
        if not readable(record[place] & WORD):
            raise UnreadableError


def string(found: bytes) -> bytes:
    """Return a string without its end.

    Raises:
        UnreadableError: there is no end: the string could not be read.
    """
    if not found:
        raise UnreadableError
    return found.partition(b"\0")[0]


def text_of(found: bytes) -> str:
    """Return an array of characters as text, up to the first NUL."""
    return found.partition(b"\0")[0].decode(errors="replace")


def _type(size: int, *, signed: bool) -> str:
    return f"{'s' if signed else 'u'}{8 * size}"
