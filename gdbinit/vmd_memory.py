"""Guest memory at virtual addresses, as the selected CPU maps it."""

from __future__ import annotations

import functools

import gdb
from vmd_registers import WORD, integer

_PIECE = 1 << 15
"""Bytes per value: GDB limits the size of values, `max-value-size`."""


def read(address: int, size: int) -> bytes:
    """Return the memory at an address.

    Since GDB 15, `Inferior.read_memory` may use any thread of the inferior: QEMU then reads through CPU 0,
    which has other user-space pages mapped. A `gdb.Value` is still read through the selected thread.

    Args:
        address: The first byte's address.
        size: Number of bytes; 0 reads nothing.

    Raises:
        gdb.MemoryError: not all of it is mapped.
    """
    if not size:
        return b""
    if not hasattr(gdb.Value, "bytes"):
        return bytes(gdb.selected_inferior().read_memory(address & WORD, size))
    pieces = range(0, size, _PIECE)
    return b"".join(_piece((address + start) & WORD, min(_PIECE, size - start)) for start in pieces)


def _piece(address: int, size: int) -> bytes:
    value = gdb.Value(address).cast(_pointer(size)).dereference()
    data: bytes = value.bytes
    return data


@functools.cache
def _pointer(size: int) -> gdb.Type:
    # GDB never frees types that are created like this.
    return integer(8).array(size - 1).pointer()
