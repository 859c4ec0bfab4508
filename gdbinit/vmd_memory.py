"""Guest memory at virtual addresses, as the selected CPU sees it."""

from __future__ import annotations

import functools

import gdb
from vmd_registers import WORD

_PIECE = 1 << 15
"""Bytes at a time: GDB has a limit for a value, `max-value-size`."""


def read(address: int, size: int) -> bytes:
    """Return what lies there.

    GDB since 15 has an inferior's memory read by whichever of its threads: QEMU takes CPU 0, which has
    other pages mapped where user space is concerned. A value is still read by the selected thread.

    Args:
        address: Its first byte's.
        size: In bytes; 0 reads nothing.

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
    # GDB never frees the types that are made so.
    return gdb.lookup_type("unsigned char").array(size - 1).pointer()
