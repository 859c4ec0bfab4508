"""A C value out of the guest, with its type.

A value is a copy: it keeps the bytes that were read, whatever the guest does later.
Following a pointer reads guest memory again, so the guest must be stopped for it.

Every name of the class itself ends in an underscore, as in drgn, so that a plain attribute is always a member
of the C type: `dev.type` is the member of a `struct device`, `dev.type_` is the C type of `dev`.
"""

from __future__ import annotations

import contextlib
import functools
import re
import reprlib
from collections.abc import Iterator
from typing import Any

from vmdebug.debugger import gdb_errors
from vmdebug.debugger import layout as layouts
from vmdebug.debugger.layout import Array, Enum, Field, Function, Layout, Other, Pointer, Struct, Void
from vmdebug.debugger.memory import Memory, ObjectCopy
from vmdebug.errors import GdbError

_NUMBERS = (layouts.Int, layouts.Bool, Enum, Pointer, Function)

_CHARS = re.compile(r"(?:const |volatile )*(?:(?:un)?signed )?char \*\w*")

STRING_BYTES = 4096
"""The longest string that is read: the kernel's PATH_MAX."""


@functools.total_ordering
class Value:  # noqa: PLW1641 - it equals values of several kinds, which have different hashes
    """One value: a number, a pointer, a struct, an array.

    Members are attributes, also through a pointer to the struct: `task.comm`. Item access reads the same
    member, and is needed where its name is a word of Python's or ends in an underscore: `dev["class"]`.
    A struct is read with all its members in one round trip; a pointer reads its struct when a member
    is first used.

    `int()` returns a number, an enumerator or an address; `float()` also takes a floating-point number.
    Numbers compare with numbers, text with a `str`, an enumerator also with its name; two structs are equal
    only if they are the same Python object. A `Value` is not hashable, because it equals both numbers and
    text: use `int(value)` or `value.string_()` as a key.

    Args:
        memory: Reads more of the guest's memory.
        copy: The object that the value is, or is part of.
        expression: The value's name in errors: "task->comm".
        number: Number of its layout, for a part of the copy.
        offset: Bytes from the start of the copy.
        bits: Its place as a bit field; None for any other value.
    """

    __slots__ = ("_bits_", "_copy_", "_expression_", "_memory_", "_number_", "_offset_", "_pointee_")

    def __init__(
        self,
        memory: Memory,
        copy: ObjectCopy,
        expression: str,
        *,
        number: int | None = None,
        offset: int = 0,
        bits: Field | None = None,
    ) -> None:
        self._memory_ = memory
        self._copy_ = copy
        self._expression_ = expression
        self._number_ = copy.type if number is None else number
        self._offset_ = offset
        self._bits_ = bits
        self._pointee_: Value | None = None

    @property
    def type_(self) -> str:
        """The C type, as C writes it."""
        return self._memory_.layouts.named(self._number_).name

    @property
    def address_(self) -> int | None:
        """The address in guest memory; None for a value in a register and for a bit field."""
        base = self._copy_.address
        return None if base is None or self._bits_ is not None else base + self._offset_

    @property
    def optimized_out_(self) -> bool:
        """Whether the compiler has optimised out all or part of the value at this place."""
        size = self._memory_.layouts.named(self._number_).size
        return layouts.is_missing(self._offset_, size, self._copy_.missing)

    def string_(self, limit: int = STRING_BYTES) -> str:
        """Return the text in a character array, or the text that a character pointer points to.

        Args:
            limit: Maximum number of bytes.

        Returns:
            The text up to the first NUL. Bytes that are not UTF-8 are escaped.

        Raises:
            GdbError: the value is not text, or the text is in memory that the guest has not mapped.
        """
        plain = self._plain_
        if isinstance(plain, Pointer):
            with self._reading_("as text"):
                return layouts.text(self._memory_.string(int(self), limit))
        if isinstance(plain, Array) and self._memory_.layouts.plain(plain.target)[1].size == 1:
            if plain.count == 0 and self.address_ is not None:
                with self._reading_("as text"):
                    return layouts.text(self._memory_.string(self.address_, limit))
            return layouts.text(self._bytes_(plain.size)[:limit])
        raise GdbError(f"{self._described_()} is not text")

    def enumerator_(self) -> str | None:
        """Return the enumerator's name, flags joined with `|`; None if the number has no name.

        Raises:
            GdbError: the value is not an enumeration.
        """
        plain = self._plain_
        if not isinstance(plain, Enum):
            raise GdbError(f"{self._described_()} is not an enumeration")
        return plain.named(int(self))

    def to_python_(self) -> Any:
        """Return the whole value as plain Python.

        A struct becomes a dict that includes the members of its unnamed structs, an array a list, an array
        of `char` a string, an enumerator its name, a pointer its address. What the compiler has optimised out
        is None.
        """
        plain = self._plain_
        if isinstance(plain, Function):
            return self.address_
        if isinstance(plain, Void):
            return None
        if self._bits_ is not None:
            reader = layouts.bits_reader(self._bits_, plain)
        else:
            reader = self._memory_.layouts.reader(self._number_)
        return reader(self._copy_.data, self._offset_, self._copy_.missing)

    def deref_(self) -> Value:
        """Return what the pointer points to, read now.

        Raises:
            GdbError: the value is not a pointer, or points to memory that cannot be read.
        """
        if not isinstance(self._plain_, Pointer):
            raise GdbError(f"{self._described_()} is not a pointer")
        return self._element_(int(self), 0, f"*{self._expression_}")

    def cast_(self, to: str) -> Value:
        """Return a number or pointer converted to another type, like a cast in C.

        Args:
            to: The type, as C writes it: "struct file *".

        Raises:
            GdbError: GDB does not know the type, or the type is a struct.
        """
        expression = f"({to})({int(self):#x})"
        return Value(self._memory_, self._memory_.evaluate(expression), f"({to}){self._expression_}")

    def container_of_(self, kind: str, member: str) -> Value:
        """Return a pointer to the struct that contains a member, like the kernel's `container_of`.

        Args:
            kind: The struct, as C writes it: "struct task_struct".
            member: The member of it that this value is, or points to: "tasks", "se.run_node".

        Raises:
            GdbError: there is no such struct or member.
        """
        offset = f"(unsigned long)&(({kind} *)0)->{member}"
        at = self.address_ if isinstance(self._plain_, Struct) and self.address_ is not None else int(self)
        copy = self._memory_.evaluate(f"({kind} *)({at:#x} - {offset})")
        return Value(self._memory_, copy, f"container_of({self._expression_}, {kind}, {member})")

    def per_cpu_ptr_(self, cpu: int) -> Value:
        """Return what a per-CPU pointer points to on one CPU, read now, like the kernel's `per_cpu_ptr`.

        Args:
            cpu: The kernel's number of the CPU.

        Raises:
            GdbError: the value is not a pointer, or there is no such CPU.
        """
        if not isinstance(self._plain_, Pointer):
            raise GdbError(f"{self._described_()} is not a pointer")
        number = self._memory_.layouts.plain(self._number_)[0]
        name = f"*per_cpu_ptr({self._expression_}, {cpu})"
        with self._reading_(f"for CPU {cpu}"):
            return Value(self._memory_, self._memory_.per_cpu_element(number, int(self), cpu), name)

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        found = self._member_(name)
        if found is None:
            raise AttributeError(self._no_member_(name))
        return found

    def __getitem__(self, key: int | str) -> Value:
        """Return an element of an array, what a pointer points to at an index, or a member by its name."""
        if isinstance(key, str):
            found = self._member_(key)
            if found is None:
                raise KeyError(self._no_member_(key))
            return found
        plain = self._plain_
        name = f"{self._expression_}[{key}]"
        if isinstance(plain, Pointer):
            return self._element_(int(self), key, name)
        if not isinstance(plain, Array):
            raise TypeError(f"{self._described_()} has no elements")
        if plain.count == 0 and self.address_ is not None:
            return self._element_(self.address_, key, name)  # a flexible array: DWARF has no length
        if not 0 <= key < plain.count:
            raise IndexError(f"`{self._expression_}` has {plain.count} elements; there is no [{key}]")
        size = self._memory_.layouts.plain(plain.target)[1].size
        return self._part_(name, plain.target, self._offset_ + key * size)

    def __len__(self) -> int:
        plain = self._plain_
        if not isinstance(plain, Array):
            raise TypeError(f"{self._described_()} has no length")
        return plain.count

    def __iter__(self) -> Iterator[Value]:
        return (self[index] for index in range(len(self)))

    def __bool__(self) -> bool:
        number = self._number_of_(self)
        return number is None or number != 0

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and self._is_text_:
            return other == (self.enumerator_() if isinstance(self._plain_, Enum) else self.string_())
        mine, theirs = self._number_of_(self), self._number_of_(other)
        return NotImplemented if mine is None or theirs is None else bool(mine == theirs)

    def __lt__(self, other: object) -> bool:
        mine, theirs = self._number_of_(self), self._number_of_(other)
        return NotImplemented if mine is None or theirs is None else bool(mine < theirs)

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)

    def __int__(self) -> int:
        """Return a number, a truth value, an enumerator, or an address.

        Raises:
            GdbError: the value is none of these, or the compiler has optimised it out.
        """
        plain = self._plain_
        if isinstance(plain, Function) and self.address_ is not None:
            return self.address_
        if isinstance(plain, Struct | Array | Void | Other | Function | layouts.Float):
            raise GdbError(f"{self._described_()} is not an integer or address")
        if self.optimized_out_:
            raise GdbError(f"the compiler has optimised out `{self._expression_}`")
        signed = bool(getattr(plain, "signed", False))
        data = self._copy_.data
        if self._bits_ is not None:
            return layouts.bit_field(data, self._offset_, self._bits_, signed=signed)
        return int.from_bytes(data[self._offset_ : self._offset_ + plain.size], "little", signed=signed)

    def __index__(self) -> int:
        return int(self)

    def __float__(self) -> float:
        """Return a number; raises as `int()` does."""
        if not isinstance(self._plain_, layouts.Float):
            return float(int(self))
        found = self.to_python_()
        if found is None:
            raise GdbError(f"the compiler has optimised out `{self._expression_}`")
        return float(found)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._memory_.layouts.members(self._number_)]

    def __repr__(self) -> str:
        value = self.to_python_()
        if value is None and self.optimized_out_:
            return f"<{self.type_} {self._expression_}: optimised out>"
        pointer = isinstance(self._plain_, Pointer | Function) and value is not None
        return f"<{self.type_} {self._expression_} = {hex(value) if pointer else reprlib.repr(value)}>"

    @property
    def _plain_(self) -> Layout:
        return self._memory_.layouts.plain(self._number_)[1]

    @property
    def _is_text_(self) -> bool:
        plain = self._plain_
        if isinstance(plain, Array):
            element = self._memory_.layouts.plain(plain.target)[1]
            return isinstance(element, layouts.Int) and element.size == 1
        text = isinstance(plain, Pointer) and _CHARS.fullmatch(plain.name) is not None
        return text or isinstance(plain, Enum)

    @staticmethod
    def _number_of_(value: object) -> int | float | None:
        if not isinstance(value, Value):
            return value if isinstance(value, int | float) else None
        plain = value._plain_
        if isinstance(plain, layouts.Float):
            return float(value)
        return int(value) if isinstance(plain, _NUMBERS) else None

    def _bytes_(self, size: int) -> bytes:
        if layouts.is_missing(self._offset_, size, self._copy_.missing):
            raise GdbError(f"the compiler has optimised out `{self._expression_}`")
        return self._copy_.data[self._offset_ : self._offset_ + size]

    def _part_(self, expression: str, number: int, offset: int, bits: Field | None = None) -> Value:
        return Value(self._memory_, self._copy_, expression, number=number, offset=offset, bits=bits)

    def _element_(self, address: int, index: int, expression: str) -> Value:
        number = self._memory_.layouts.plain(self._number_)[0]
        with self._reading_(f"at {address:#x}"):
            return Value(self._memory_, self._memory_.element(number, address, index), expression)

    @contextlib.contextmanager
    def _reading_(self, how: str) -> Iterator[None]:
        """Name the value, not the MI command, in an error that GDB reports in the block."""
        try:
            yield
        except GdbError as error:
            what = f"what `{self._expression_}` points to cannot be read {how}"
            raise gdb_errors.renamed(error, what) from error

    def _member_(self, name: str) -> Value | None:
        if isinstance(self._plain_, Pointer):
            if self._pointee_ is None:
                self._pointee_ = self.deref_()
                self._pointee_._expression_ = self._expression_
            return self._pointee_._member_(name)
        found = self._memory_.layouts.member(self._number_, name)
        if found is None:
            return None
        field, position = found
        expression = f"{self._expression_}.{name}"
        if field.bits:
            # The reader needs the field's position in the outermost struct, not in an unnamed one.
            bits = Field(name, field.type, position, field.bits)
            return self._part_(expression, field.type, self._offset_, bits)
        return self._part_(expression, field.type, self._offset_ + position // 8)

    def _described_(self) -> str:
        return f"`{self._expression_}`, of type {self.type_},"

    def _no_member_(self, name: str) -> str:
        number = self._pointee_._number_ if self._pointee_ is not None else self._number_
        names = self._memory_.layouts.members(number)
        members = f"; its members are {', '.join(names)}" if names else ""
        return f"{self._described_()} has no member {name}{members}"
