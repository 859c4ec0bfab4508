"""The layout of the structs of the kernel's log: from the vmlinux's types, or from the kernel's vmcoreinfo.

The kernel describes its log to programs that read crash dumps, in text like "OFFSET(prb_desc.state_var)=0":
see log_buf_vmcoreinfo_setup of kernel/printk/printk.c, and Documentation/admin-guide/kdump/vmcoreinfo.rst.
"""

from __future__ import annotations

import re
from typing import Protocol

import gdb
import vmd_debuginfo
import vmd_kernel
import vmd_memory

_LINE = re.compile(r"^(OFFSET|SIZE|SYMBOL)\(([\w.]+)\)=([0-9a-f]+)$", re.MULTILINE)
_LARGEST = 64 << 10
"""More than VMCOREINFO_BYTES of any kernel, which is a page."""


class Layout(Protocol):
    """Where the fields of a struct are. Numbers in these structs have the same size in every kernel."""

    def offset(self, struct: str, field: str) -> int:
        """Return a field's offset in bytes."""

    def size(self, struct: str) -> int:
        """Return a struct's size in bytes."""

    def ring(self) -> int | None:
        """Return the address of the `struct printk_ringbuffer`; None if the kernel has none."""


class Types:
    """The layout according to the debugging information."""

    _PRB = "'printk.c'::prb"

    def offset(self, struct: str, field: str) -> int:
        """See `Layout`."""
        found = vmd_kernel.struct(struct)[field]
        if found.bitpos is None:
            raise gdb.GdbError(f"{field} of struct {struct} has no offset")
        return found.bitpos // 8

    def size(self, struct: str) -> int:
        """See `Layout`."""
        return vmd_kernel.struct(struct).sizeof

    def ring(self) -> int | None:
        """See `Layout`."""
        return vmd_kernel.number(f"(unsigned long) {self._PRB}")


class VmcoreInfo:
    """The layout according to the kernel's own description in guest memory.

    Args:
        text: The description.
    """

    def __init__(self, text: str) -> None:
        self._numbers = {
            f"{kind} {name}": int(number, 16 if kind == "SYMBOL" else 10)
            for kind, name, number in _LINE.findall(text)
        }

    def offset(self, struct: str, field: str) -> int:
        """See `Layout`."""
        return self._number(f"OFFSET {struct}.{field}")

    def size(self, struct: str) -> int:
        """See `Layout`."""
        return self._number(f"SIZE {struct}")

    def ring(self) -> int | None:
        """See `Layout`."""
        pointer = self._numbers.get("SYMBOL prb")
        return None if pointer is None else int.from_bytes(vmd_memory.read(pointer, 8), "little")

    def _number(self, what: str) -> int:
        if what not in self._numbers:
            raise gdb.GdbError(f"the kernel's vmcoreinfo lacks {what}")
        return self._numbers[what]


def layout() -> Layout:
    """Return the layout.

    Raises:
        gdb.GdbError: neither the vmlinux nor the kernel describes it.
        gdb.MemoryError: the kernel's data is not mapped.
    """
    if not vmd_debuginfo.missing():
        return Types()
    data = vmd_kernel.number("*(unsigned long *) &vmcoreinfo_data")
    size = vmd_kernel.number("*(unsigned long *) &vmcoreinfo_size")
    if not data or not size:
        why = "has no vmcoreinfo" if data is None else "has not written its vmcoreinfo yet"
        raise gdb.GdbError(f"the kernel {why}, and {vmd_debuginfo.lacking('its log')}")
    return VmcoreInfo(vmd_memory.read(data, min(size, _LARGEST)).decode(errors="replace"))
