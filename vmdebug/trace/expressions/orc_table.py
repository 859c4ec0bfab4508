"""The ORC table of a kernel and its modules; see Documentation/arch/x86/orc-unwinder.rst."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from vmdebug.kimage import elf

ENTRY_SIZE = 6
"""The size of a `struct orc_entry` in bytes."""


class OrcTable(msgspec.Struct, frozen=True):
    """Entries that say how to find a caller, by address.

    Args:
        addresses: The linked addresses from which the entries hold, ascending.
        entries: The entries, each of ENTRY_SIZE bytes.
    """

    addresses: tuple[int, ...]
    entries: bytes

    def with_entries(self, more: Iterable[tuple[int, bytes]]) -> OrcTable:
        """Return a table with further addresses and their entries."""
        added = sorted(more)
        if not added:
            return self
        size = ENTRY_SIZE
        own = [self.entries[n * size : n * size + size] for n in range(len(self.addresses))]
        merged = sorted([*zip(self.addresses, own, strict=True), *added])
        return OrcTable(tuple(address for address, _ in merged), b"".join(entry for _, entry in merged))


def of_vmlinux(vmlinux: Path) -> OrcTable | None:
    """Return the table of a vmlinux, which the kernel's build sorts; None if it has none."""
    with elf.opened(vmlinux) as stream:
        file = elf.parse(vmlinux, stream)
        places, entries = (file.get_section_by_name(each) for each in (".orc_unwind_ip", ".orc_unwind"))
        if not (elf.has_bytes(places) and elf.has_bytes(entries)):
            return None
        return of_sections(places.data(), places["sh_addr"], entries.data())


def of_sections(places: bytes, at: int, entries: bytes) -> OrcTable:
    """Return the table in the sections of a vmlinux.

    Args:
        places: The section `.orc_unwind_ip`: offsets, each relative to its own address.
        at: Its linked address.
        entries: The section `.orc_unwind`.
    """
    offsets = struct.unpack(f"<{len(places) // 4}i", places)
    return OrcTable(tuple(at + 4 * number + offset for number, offset in enumerate(offsets)), entries)
