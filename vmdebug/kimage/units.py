"""The compilation units of a vmlinux: which files it was compiled from, and with which options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmdebug.kimage import elf


class Unit(msgspec.Struct, frozen=True):
    """A compilation unit.

    Args:
        file: Its source file, as the compiler was given it.
        directory: The compiler's working directory.
        producer: The compiler, with the options that gcc records; see -grecord-gcc-switches in gcc(1).
    """

    file: str
    directory: str
    producer: str


def read(vmlinux: Path) -> Iterator[Unit]:
    """Yield the units, which takes seconds for a whole kernel.

    Raises:
        UsageError: it is damaged, or has no debug information.
    """
    with elf.opened(vmlinux) as stream:
        file = elf.parse(vmlinux, stream)
        try:
            for unit in file.get_dwarf_info().iter_CUs():
                found = unit.get_top_DIE().attributes
                words = [
                    found[name]
                    for name in ("DW_AT_name", "DW_AT_comp_dir", "DW_AT_producer")
                    if name in found
                ]
                if len(words) == len(Unit.__struct_fields__):
                    yield Unit(*(word.value.decode(errors="replace") for word in words))
        except Exception as error:
            raise elf.damaged(vmlinux, error) from error
