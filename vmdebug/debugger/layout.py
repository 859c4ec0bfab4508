"""The layout of C types, and the readers that make Python values of their bytes.

`gdbinit/vmd_value.py` describes each type once, inside GDB. This module decodes the descriptions, and makes a
function from bytes to a Python value of each.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

Missing = Sequence[tuple[int, int]]
"""Pieces, as (offset, size) in bytes, that the compiler has optimised out."""

Reader = Callable[[bytes, int, Missing], Any]
"""Reads a value from bytes at an offset; returns None if it is optimised out."""


class Scalar(msgspec.Struct, frozen=True, tag_field="kind"):
    """The part that all layouts have.

    Args:
        name: The type as C writes it.
        size: Bytes.
    """

    name: str
    size: int


class Int(Scalar, frozen=True, tag="int"):
    """An integer or character."""

    signed: bool


class Bool(Scalar, frozen=True, tag="bool"):
    """A truth value."""


class Float(Scalar, frozen=True, tag="float"):
    """A floating-point number of 4 or 8 bytes."""


class Pointer(Scalar, frozen=True, tag="pointer"):
    """An address."""


class Function(Scalar, frozen=True, tag="function"):
    """A function; its value is its address."""


class Void(Scalar, frozen=True, tag="void"):
    """C's void."""


class Other(Scalar, frozen=True, tag="other"):
    """A type that only GDB understands; only its bytes are known."""


class Enum(Scalar, frozen=True, tag="enum"):
    """An enumeration.

    Args:
        signed: Whether it has negative values.
        names: The enumerators, each with its value.
    """

    signed: bool
    names: tuple[tuple[str, int], ...]

    def named(self, value: int) -> str | None:
        """Return the enumerator of a value, flags joined with `|`; None if there is none."""
        for name, each in self.names:
            if each == value:
                return name
        flags = [(name, each) for name, each in self.names if each > 0 and each & value == each]
        covered = 0
        for _, each in flags:
            covered |= each
        return "|".join(name for name, _ in flags) if value > 0 and covered == value else None


class Typedef(Scalar, frozen=True, tag="typedef"):
    """A typedef of another type."""

    target: int


class Array(Scalar, frozen=True, tag="array"):
    """An array; a flexible array has a count of 0."""

    target: int
    count: int


class Field(msgspec.Struct, frozen=True, array_like=True):
    """A member of a struct or union. The members of an unnamed one count as the outer struct's.

    Args:
        name: Its name; "" for an unnamed struct or union.
        type: Number of its layout.
        position: Bits from the start of the struct.
        bits: Size of a bit field; 0 for any other member.
    """

    name: str
    type: int
    position: int
    bits: int


class Struct(Scalar, frozen=True, tag="struct"):
    """A struct or a union."""

    fields: tuple[Field, ...]


Layout = Int | Bool | Float | Pointer | Function | Void | Other | Enum | Typedef | Array | Struct


class Layouts:
    """The layouts that are known, by the number of the type in GDB."""

    def __init__(self) -> None:
        self._layouts: list[Layout] = []
        self._readers: dict[int, Reader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._layouts)

    def add(self, start: int, more: Sequence[Layout]) -> None:
        """Add the layouts numbered from `start`, except those that are known by now."""
        with self._lock:
            self._layouts += more[len(self._layouts) - start :]

    def named(self, number: int) -> Layout:
        """Return a layout, which may be a typedef."""
        return self._layouts[number]

    def plain(self, number: int) -> tuple[int, Layout]:
        """Return the layout behind all typedefs, with its number."""
        layout = self._layouts[number]
        while isinstance(layout, Typedef):
            number = layout.target
            layout = self._layouts[number]
        return number, layout

    def member(self, number: int, name: str) -> tuple[Field, int] | None:
        """Return a struct's member, also one of an unnamed struct in it, and its position in bits."""
        layout = self.plain(number)[1]
        for field in layout.fields if isinstance(layout, Struct) else ():
            if field.name == name:
                return field, field.position
            inner = None if field.name else self.member(field.type, name)
            if inner is not None:
                return inner[0], field.position + inner[1]
        return None

    def members(self, number: int) -> list[str]:
        """Return the names of a struct's members, including those of unnamed structs in it."""
        layout = self.plain(number)[1]
        names: list[str] = []
        for field in layout.fields if isinstance(layout, Struct) else ():
            names += [field.name] if field.name else self.members(field.type)
        return names

    def reader(self, number: int) -> Reader:
        """Return the reader of a type; it is made once."""
        reader = self._readers.get(number)
        if reader is None:
            reader = self._readers[number] = self._make(number)
        return reader

    def _make(self, number: int) -> Reader:
        layout = self.plain(number)[1]
        match layout:
            case Struct():
                return self._struct(layout)
            case Array():
                return self._array(layout)
            case Enum():
                return _enum(layout)
            case Bool():
                return _bool(layout.size)
            case Float():
                return _float(layout.size)
            case _:
                return _int(layout.size, signed=isinstance(layout, Int) and layout.signed)

    def _struct(self, layout: Struct) -> Reader:
        members: list[tuple[str, int, Reader]] = []
        for field in layout.fields:
            if field.bits:
                members.append((field.name, 0, bits_reader(field, self.plain(field.type)[1])))
            else:
                members.append((field.name, field.position // 8, self.reader(field.type)))

        def read(data: bytes, offset: int, missing: Missing) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, at, reader in members:
                if name:
                    found[name] = reader(data, offset + at, missing)
                else:
                    found.update(reader(data, offset + at, missing))
            return found

        return read

    def _array(self, layout: Array) -> Reader:
        count, target = layout.count, self.plain(layout.target)[1]
        if is_char(target):
            return _text(count)
        unpack = _many(target, count)
        if unpack is not None:
            return unpack
        reader, size = self.reader(layout.target), target.size

        def read(data: bytes, offset: int, missing: Missing) -> list[Any]:
            return [reader(data, offset + at, missing) for at in range(0, count * size, size)]

        return read


def is_char(layout: Layout) -> bool:
    """Whether arrays of the type and pointers to it are text; `unsigned char` counts as a number."""
    return (
        isinstance(layout, Int)
        and layout.size == 1
        and layout.name.split()[-1] == "char"
        and ("unsigned" not in layout.name and "signed" not in layout.name)
    )


def is_missing(offset: int, size: int, missing: Missing) -> bool:
    """Whether the compiler has optimised out any of these bytes."""
    return any(at < offset + size and offset < at + length for at, length in missing)


def bit_field(data: bytes, offset: int, field: Field, *, signed: bool) -> int:
    """Return the value of a bit field of the struct at `offset`; little-endian, like all guests."""
    first, shift = divmod(field.position, 8)
    last = (field.position + field.bits + 7) // 8
    value = int.from_bytes(data[offset + first : offset + last], "little") >> shift & ((1 << field.bits) - 1)
    return value - (1 << field.bits) if signed and value >> (field.bits - 1) else value


def bits_reader(field: Field, layout: Layout) -> Reader:
    """Return the reader of a bit field; its offset is that of the struct."""
    first, last = field.position // 8, (field.position + field.bits + 7) // 8
    signed = bool(getattr(layout, "signed", False))

    def read(data: bytes, offset: int, missing: Missing) -> Any:
        if missing and is_missing(offset + first, last - first, missing):
            return None
        value = bit_field(data, offset, field, signed=signed)
        if isinstance(layout, Bool):
            return bool(value)
        return (layout.named(value) or value) if isinstance(layout, Enum) else value

    return read


def _int(size: int, *, signed: bool) -> Reader:
    def read(data: bytes, offset: int, missing: Missing) -> int | None:
        if missing and is_missing(offset, size, missing):
            return None
        return int.from_bytes(data[offset : offset + size], "little", signed=signed)

    return read


def _bool(size: int) -> Reader:
    number = _int(size, signed=False)

    def read(data: bytes, offset: int, missing: Missing) -> bool | None:
        value = number(data, offset, missing)
        return None if value is None else bool(value)

    return read


def _enum(layout: Enum) -> Reader:
    number = _int(layout.size, signed=layout.signed)

    def read(data: bytes, offset: int, missing: Missing) -> str | int | None:
        value: int | None = number(data, offset, missing)
        return value if value is None else layout.named(value) or value

    return read


def _float(size: int) -> Reader:
    format_ = {4: "<f", 8: "<d"}.get(size)

    def read(data: bytes, offset: int, missing: Missing) -> float | None:
        if format_ is None or (missing and is_missing(offset, size, missing)):
            return None
        return float(struct.unpack_from(format_, data, offset)[0])

    return read


def _text(count: int) -> Reader:
    def read(data: bytes, offset: int, missing: Missing) -> str | None:
        if missing and is_missing(offset, count, missing):
            return None
        return text(data[offset : offset + count])

    return read


def text(data: bytes) -> str:
    """Return the C string in `data`, up to the first NUL; bytes that are not UTF-8 are escaped."""
    return data.split(b"\0", 1)[0].decode(errors="backslashreplace")


_CODES = {1: "b", 2: "h", 4: "i", 8: "q"}


def _many(target: Layout, count: int) -> Reader | None:
    """Return a reader of an array of plain numbers; None for other arrays."""
    if not isinstance(target, Int | Pointer) or target.size not in _CODES:
        return None
    code = _CODES[target.size]
    packed = struct.Struct(f"<{count}{code if isinstance(target, Int) and target.signed else code.upper()}")

    def read(data: bytes, offset: int, missing: Missing) -> list[int | None]:
        numbers: list[int | None] = list(packed.unpack_from(data, offset))
        if missing:
            for index in range(count):
                if is_missing(offset + index * target.size, target.size, missing):
                    numbers[index] = None
        return numbers

    return read
