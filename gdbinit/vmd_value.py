"""Values as bytes with the layout of their type, so that one answer holds a whole struct.

Each type is described once and then has a number; the host keeps the descriptions and decodes the bytes
itself. GDB takes some hundred times as long to walk over a `task_struct` as to read its bytes.
"""

from __future__ import annotations

import struct
from typing import Any

import gdb
import vmd_memory

LIMIT = 1 << 20
"""The largest value that is returned whole, in bytes."""

_SCALARS = {
    gdb.TYPE_CODE_INT: "int",
    gdb.TYPE_CODE_CHAR: "int",
    gdb.TYPE_CODE_BOOL: "bool",
    gdb.TYPE_CODE_FLT: "float",
    gdb.TYPE_CODE_PTR: "pointer",
    gdb.TYPE_CODE_FUNC: "function",
    gdb.TYPE_CODE_VOID: "void",
}
_STRUCTS = (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION)
_FLOATS = {4: "<f", 8: "<d"}
_WORD_BYTES = 8


class Layouts:
    """The types that were described, by number."""

    def __init__(self) -> None:
        self.types: list[gdb.Type] = []
        self.described: list[dict[str, Any]] = []
        self._by_name: dict[str, list[int]] = {}

    def number(self, kind: gdb.Type) -> int:
        """Return the number of a type; describe it if it is new."""
        # Different types may have the same name: in two files, or unnamed ones.
        numbers = self._by_name.setdefault(str(kind), [])
        for number in numbers:
            if self.types[number] == kind:
                return number
        number = len(self.types)
        numbers.append(number)
        self.types.append(kind)
        # Take the number before the members take theirs, so that there is never a gap.
        self.described.append({})
        self.described[number].update(self._describe(kind))
        return number

    def _describe(self, kind: gdb.Type) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": str(kind), "size": _size(kind)}
        if kind.code == gdb.TYPE_CODE_TYPEDEF:
            return {**entry, "kind": "typedef", "target": self.number(kind.target())}
        if kind.code in _STRUCTS:
            return {**entry, **self._describe_struct(kind)}
        if kind.code == gdb.TYPE_CODE_ARRAY:
            return {**entry, "kind": "array", "target": self.number(kind.target()), "count": _count(kind)}
        if kind.code == gdb.TYPE_CODE_ENUM:
            names = [(field.name, field.enumval) for field in kind.fields()]
            signed = any(value < 0 for _, value in names)
            return {**entry, "kind": "enum", "signed": signed, "names": names}
        signed = kind.is_scalar and kind.is_signed
        return {**entry, "kind": _SCALARS.get(kind.code, "other"), "signed": signed}

    def _describe_struct(self, kind: gdb.Type) -> dict[str, Any]:
        full = complete(kind)
        fields = [
            (field.name or "", self.number(field.type), field.bitpos, field.bitsize)
            for field in full.fields()
            if field.type is not None and hasattr(field, "bitpos")
        ]
        return {"kind": "struct", "size": _size(full), "fields": fields}


LAYOUTS = Layouts()


def complete(kind: gdb.Type) -> gdb.Type:
    """Return a struct's definition if `kind` is only its declaration."""
    return kind.strip_typedefs() if not kind.fields() else kind


def _count(kind: gdb.Type) -> int:
    """Return the length of a C array: GDB gives a flexible one the range 0 to 0, but no size."""
    size = _size(kind.target())
    return _size(kind) // size if size else 0


def _size(kind: gdb.Type) -> int:
    return kind.sizeof or 0  # None if it is known only at run time


def about(value: gdb.Value) -> tuple[dict[str, Any], bytes]:
    """Return a value's type, address and missing parts for the host, and its bytes.

    Raises:
        gdb.error: it cannot be read, or is too big.
    """
    kind = value.type
    number = LAYOUTS.number(kind)
    entry: dict[str, Any] = {"type": number, "address": None, "missing": []}
    address = value.address
    if address is not None:
        entry["address"] = int(address)
    size: int = LAYOUTS.described[number]["size"]
    if size > LIMIT:
        raise gdb.GdbError(f"a {kind} of {size} bytes is too large to read at once: read its members")
    plain = kind.strip_typedefs()
    if plain.code in (gdb.TYPE_CODE_FUNC, gdb.TYPE_CODE_VOID):
        return entry, b""
    if address is not None:
        return entry, vmd_memory.read(int(address), size)
    data = bytearray(size)
    missing: list[tuple[int, int]] = []
    _gather(value, plain, data, 0, missing)
    return {**entry, "missing": missing}, bytes(data)


def _gather(
    value: gdb.Value, kind: gdb.Type, data: bytearray, offset: int, missing: list[tuple[int, int]]
) -> None:
    """Assemble the bytes of a value that is not in memory: in registers, in pieces, or optimised out."""
    if kind.code in _STRUCTS:
        for field in complete(kind).fields():
            if field.type is None or field.bitpos is None:
                continue
            position = offset * 8 + field.bitpos
            if field.bitsize:
                _gather_bits(value[field], data, position, field.bitsize, missing)
            else:
                _gather(value[field], field.type.strip_typedefs(), data, position // 8, missing)
    elif kind.code == gdb.TYPE_CODE_ARRAY:
        target = kind.target().strip_typedefs()
        for index in range(_count(kind)):
            _gather(value[index], target, data, offset + index * _size(target), missing)
    elif value.is_optimized_out:
        missing.append((offset, _size(kind)))
    elif kind.code == gdb.TYPE_CODE_FLT:
        if _size(kind) in _FLOATS:  # the host decodes no others
            struct.pack_into(_FLOATS[_size(kind)], data, offset, float(value))
    else:
        size = _size(kind)
        number = _number(value, size) & ((1 << 8 * size) - 1)
        data[offset : offset + size] = number.to_bytes(size, "little")


def _number(value: gdb.Value, size: int) -> int:
    # GDB 13 does not convert wider integers, such as an __int128, to Python.
    return int(value) if size <= _WORD_BYTES else int(value.format_string(format="x"), 16)


def _gather_bits(
    value: gdb.Value, data: bytearray, position: int, size: int, missing: list[tuple[int, int]]
) -> None:
    if value.is_optimized_out:
        missing.append((position // 8, (position % 8 + size + 7) // 8))
        return
    whole = int.from_bytes(data, "little") | (int(value) & ((1 << size) - 1)) << position
    data[:] = whole.to_bytes(len(data), "little")


def element(number: int, address: int, index: int) -> gdb.Value:
    """Return an element of an array, or of what a pointer points to.

    Args:
        number: The pointer's or array's type.
        address: The pointer's value, or the array's address.
        index: The element's index.
    """
    target = LAYOUTS.types[number].strip_typedefs().target()
    return (gdb.Value(address).cast(target.pointer()) + index).dereference()


CHUNK = 256


def string(address: int, limit: int) -> bytes:
    """Return the bytes at `address` up to the first NUL, at most `limit`.

    It is read in aligned pieces, so that nothing behind its last page is touched.

    Raises:
        gdb.MemoryError: it runs into memory that cannot be read.
    """
    found = b""
    while len(found) < limit:
        start = address + len(found)
        piece = vmd_memory.read(start, CHUNK - start % CHUNK)
        end = piece.find(b"\0")
        if end >= 0:
            return (found + piece[:end])[:limit]
        found += piece
    return found[:limit]
