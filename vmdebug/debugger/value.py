"""A C value out of the guest, with its type.

A value is a snapshot: what was read stays as it was, whatever the guest does later.
Following a pointer reads anew, which needs the guest stopped.
"""

from __future__ import annotations

import contextlib
import functools
import re
import reprlib
from collections.abc import Iterator
from typing import Any, TypeAlias

from vmdebug.debugger import layout as layouts
from vmdebug.debugger import refused
from vmdebug.debugger.layout import Array, Enum, Field, Function, Layout, Other, Pointer, Struct, Void
from vmdebug.debugger.memory import Memory, Snapshot
from vmdebug.errors import GdbError

Number: TypeAlias = int
"""Inside `Value`, `int` is its method."""

_NUMBERS = (layouts.Int, layouts.Bool, Enum, Pointer, Function)

_CHARS = re.compile(r"(?:const |volatile )*(?:(?:un)?signed )?char \*\w*")

STRING_BYTES = 4096
"""The longest string that is read; PATH_MAX of the kernel."""


@functools.total_ordering
class Value:
    """One value: a number, a pointer, a struct, an array.

    Members are attributes, `task.comm`, also through a pointer to the struct; where a
    member's name is one of this class's, `value["type"]`. All that a struct holds came
    with it in one round trip, and so it does through a pointer, the first time. A number
    compares with numbers, text with a `str`, an enumerator with its name as well; two structs are equal only
    where they are the same object of Python.

    Args:
        memory: What reads further.
        snapshot: The object that the value is, or is part of.
        expression: What it is called in errors: "task->comm".
        number: Its layout, where it is a part.
        offset: Bytes from the snapshot's start.
        bits: The bit field that it is.
    """

    __slots__ = ("_bits", "_expression", "_memory", "_number", "_offset", "_pointee", "_snapshot")

    def __init__(
        self,
        memory: Memory,
        snapshot: Snapshot,
        expression: str,
        *,
        number: Number | None = None,
        offset: Number = 0,
        bits: Field | None = None,
    ) -> None:
        self._memory = memory
        self._snapshot = snapshot
        self._expression = expression
        self._number = snapshot.type if number is None else number
        self._offset = offset
        self._bits = bits
        self._pointee: Value | None = None

    @property
    def type(self) -> str:
        """Its type, as C writes it."""
        return self._memory.layouts.named(self._number).name

    @property
    def address(self) -> Number | None:
        """Where it is in the guest's memory; None in a register, and for a bit field."""
        base = self._snapshot.address
        return None if base is None or self._bits is not None else base + self._offset

    @property
    def optimized_out(self) -> bool:
        """Whether the compiler has kept nothing or not all of it here."""
        size = self._memory.layouts.named(self._number).size
        return layouts.is_missing(self._offset, size, self._snapshot.missing)

    def int(self) -> Number:
        """Return a number, a truth value, an enumerator, or an address, as a number.

        Raises:
            GdbError: it is no such thing, or has been optimised out.
        """
        plain = self._plain
        if isinstance(plain, Function) and self.address is not None:
            return self.address
        if isinstance(plain, Struct | Array | Void | Other | Function | layouts.Float):
            raise GdbError(f"`{self._expression}` is a {self.type}, not a number")
        if self.optimized_out:
            raise GdbError(f"`{self._expression}` has been optimised out by the compiler")
        signed = bool(getattr(plain, "signed", False))
        data = self._snapshot.data
        if self._bits is not None:
            return layouts.bit_field(data, self._offset, self._bits, signed=signed)
        return Number.from_bytes(data[self._offset : self._offset + plain.size], "little", signed=signed)

    def string(self, limit: Number = STRING_BYTES) -> str:
        """Return the text of a character array, or what a character pointer points to.

        Args:
            limit: Bytes that it has at most.

        Returns:
            The text up to the first NUL; bytes that are no UTF-8 come escaped.

        Raises:
            GdbError: it is no text, or lies in memory that the guest hasn't mapped.
        """
        plain = self._plain
        if isinstance(plain, Pointer):
            with self._reading("as text"):
                return layouts.text(self._memory.string(self.int(), limit))
        if isinstance(plain, Array) and self._memory.layouts.plain(plain.target)[1].size == 1:
            if plain.count == 0 and self.address is not None:
                with self._reading("as text"):
                    return layouts.text(self._memory.string(self.address, limit))
            return layouts.text(self._bytes(plain.size)[:limit])
        raise GdbError(f"`{self._expression}` is a {self.type}, not text")

    def enumerator(self) -> str | None:
        """Return the name of an enumerator, flags joined with `|`; None where the number has no name.

        Raises:
            GdbError: it is no enumeration.
        """
        plain = self._plain
        if not isinstance(plain, Enum):
            raise GdbError(f"`{self._expression}` is a {self.type}, not an enumeration")
        return plain.named(self.int())

    def to_python(self) -> Any:
        """Return all of it as plain Python.

        A struct becomes a dict, with the members of unnamed structs among its own; an array
        a list, of `char` a string; an enumerator its name; a pointer its address. What
        has been optimised out is None.
        """
        plain = self._plain
        if isinstance(plain, Function):
            return self.address
        if isinstance(plain, Void):
            return None
        if self._bits is not None:
            reader = layouts.bits_reader(self._bits, plain)
        else:
            reader = self._memory.layouts.reader(self._number)
        return reader(self._snapshot.data, self._offset, self._snapshot.missing)

    def deref(self) -> Value:
        """Return what a pointer points to, read now.

        Raises:
            GdbError: it is no pointer, or points to memory that cannot be read.
        """
        if not isinstance(self._plain, Pointer):
            raise GdbError(f"`{self._expression}` is a {self.type}, not a pointer")
        return self._element(self.int(), 0, f"*{self._expression}")

    def cast(self, to: str) -> Value:
        """Return a number or pointer as another type, as C's cast does.

        Args:
            to: The type, as C writes it: "struct file *".

        Raises:
            GdbError: there is no such type, or it is a struct itself.
        """
        expression = f"({to})({self.int():#x})"
        return Value(self._memory, self._memory.evaluate(expression), f"({to}){self._expression}")

    def container_of(self, kind: str, member: str) -> Value:
        """Return the struct that holds what this pointer points to; the kernel's `container_of`.

        Args:
            kind: The struct, as C writes it: "struct task_struct".
            member: The member in it that is pointed to, or that this is: "tasks", "se.run_node".

        Returns:
            The pointer to the struct.

        Raises:
            GdbError: there is no such struct or member.
        """
        offset = f"(unsigned long)&(({kind} *)0)->{member}"
        at = self.address if isinstance(self._plain, Struct) and self.address is not None else self.int()
        snapshot = self._memory.evaluate(f"({kind} *)({at:#x} - {offset})")
        return Value(self._memory, snapshot, f"container_of({self._expression}, {kind}, {member})")

    def per_cpu_ptr(self, cpu: Number) -> Value:
        """Return what a per-CPU pointer points to for one CPU, read now; the kernel's `per_cpu_ptr`.

        Args:
            cpu: The CPU, as the kernel counts.

        Raises:
            GdbError: it is no pointer, or there is no such CPU.
        """
        if not isinstance(self._plain, Pointer):
            raise GdbError(f"`{self._expression}` is a {self.type}, not a pointer")
        number = self._memory.layouts.plain(self._number)[0]
        name = f"*per_cpu_ptr({self._expression}, {cpu})"
        with self._reading(f"for CPU {cpu}"):
            return Value(self._memory, self._memory.per_cpu_element(number, self.int(), cpu), name)

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        found = self._member(name)
        if found is None:
            raise AttributeError(f"`{self._expression}`, a {self.type}, has no member {name}{self._choice()}")
        return found

    def __getitem__(self, key: Number | str) -> Value:
        """Return an array's element, what a pointer points to and after it, or a member by its name."""
        if isinstance(key, str):
            found = self._member(key)
            if found is None:
                raise KeyError(f"`{self._expression}`, a {self.type}, has no member {key}{self._choice()}")
            return found
        plain = self._plain
        name = f"{self._expression}[{key}]"
        if isinstance(plain, Pointer):
            return self._element(self.int(), key, name)
        if not isinstance(plain, Array):
            raise TypeError(f"`{self._expression}` is a {self.type}, it has no elements")
        if plain.count == 0 and self.address is not None:
            return self._element(self.address, key, name)  # a flexible array: only its user knows its end
        if not 0 <= key < plain.count:
            raise IndexError(f"`{self._expression}` has {plain.count} elements, no [{key}]")
        size = self._memory.layouts.plain(plain.target)[1].size
        return self._part(name, plain.target, self._offset + key * size)

    def __len__(self) -> Number:
        plain = self._plain
        if not isinstance(plain, Array):
            raise TypeError(f"`{self._expression}` is a {self.type}, it has no length")
        return plain.count

    def __iter__(self) -> Iterator[Value]:
        return (self[index] for index in range(len(self)))

    def __bool__(self) -> bool:
        return not isinstance(self._plain, Pointer | layouts.Int | layouts.Bool | Enum) or self.int() != 0

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and self._is_text:
            return other == (self.enumerator() if isinstance(self._plain, Enum) else self.string())
        mine, theirs = self._number_of(self), self._number_of(other)
        return NotImplemented if mine is None or theirs is None else bool(mine == theirs)

    def __lt__(self, other: object) -> bool:
        mine, theirs = self._number_of(self), self._number_of(other)
        return NotImplemented if mine is None or theirs is None else bool(mine < theirs)

    def __hash__(self) -> Number:
        number = self._number_of(self)
        return object.__hash__(self) if number is None else hash(number)

    def __format__(self, spec: str) -> str:
        return format(self.int(), spec) if spec else str(self)

    def __int__(self) -> Number:
        return self.int()

    def __index__(self) -> Number:
        return self.int()

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._memory.layouts.members(self._number)]

    def __repr__(self) -> str:
        value = self.to_python()
        if value is None and self.optimized_out:
            return f"<{self.type} {self._expression}: optimised out>"
        pointer = isinstance(self._plain, Pointer | Function) and value is not None
        return f"<{self.type} {self._expression} = {hex(value) if pointer else reprlib.repr(value)}>"

    @property
    def _plain(self) -> Layout:
        return self._memory.layouts.plain(self._number)[1]

    @property
    def _is_text(self) -> bool:
        plain = self._plain
        if isinstance(plain, Array):
            element = self._memory.layouts.plain(plain.target)[1]
            return isinstance(element, layouts.Int) and element.size == 1
        text = isinstance(plain, Pointer) and _CHARS.fullmatch(plain.name) is not None
        return text or isinstance(plain, Enum)

    @staticmethod
    def _number_of(value: object) -> Number | float | None:
        if not isinstance(value, Value):
            return value if isinstance(value, Number | float) else None
        plain = value._plain  # noqa: SLF001 - another of our own
        if isinstance(plain, layouts.Float):
            found: float | None = value.to_python()
            return found
        return value.int() if isinstance(plain, _NUMBERS) else None

    def _bytes(self, size: Number) -> bytes:
        if layouts.is_missing(self._offset, size, self._snapshot.missing):
            raise GdbError(f"`{self._expression}` has been optimised out by the compiler")
        return self._snapshot.data[self._offset : self._offset + size]

    def _part(self, expression: str, number: Number, offset: Number, bits: Field | None = None) -> Value:
        return Value(self._memory, self._snapshot, expression, number=number, offset=offset, bits=bits)

    def _element(self, address: Number, index: Number, expression: str) -> Value:
        number = self._memory.layouts.plain(self._number)[0]
        with self._reading(f"at {address:#x}"):
            return Value(self._memory, self._memory.element(number, address, index), expression)

    @contextlib.contextmanager
    def _reading(self, how: str) -> Iterator[None]:
        """Say of what GDB refuses in the block which value it was, not which command of MI."""
        try:
            yield
        except GdbError as error:
            what = f"what `{self._expression}` points to cannot be read {how}"
            raise refused.reworded(error, what) from error

    def _member(self, name: str) -> Value | None:
        if isinstance(self._plain, Pointer):
            if self._pointee is None:
                self._pointee = self.deref()
                self._pointee._expression = self._expression  # noqa: SLF001 - another of our own
            return self._pointee._member(name)  # noqa: SLF001
        found = self._memory.layouts.member(self._number, name)
        if found is None:
            return None
        field, position = found
        expression = f"{self._expression}.{name}"
        if field.bits:
            # The reader wants the field's place in what the snapshot holds, whatever lies around it.
            bits = Field(name, field.type, position, field.bits)
            return self._part(expression, field.type, self._offset, bits)
        return self._part(expression, field.type, self._offset + position // 8)

    def _choice(self) -> str:
        number = self._pointee._number if self._pointee is not None else self._number  # noqa: SLF001
        names = self._memory.layouts.members(number)
        return f"; it has {', '.join(names)}" if names else ""
