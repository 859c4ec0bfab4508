"""Gives GDB symbols that no file has."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

import gdb
import vmd_guest
import vmd_scratch
from vmd_elf_symbols import Area, Symbol, content

_E_MACHINE = slice(18, 20)


def load(name: str, areas: Iterable[Area], symbols: Iterable[Symbol]) -> Path:
    """Load symbols; return the file with them, for `remove-symbol-file`.

    Args:
        name: The file's name.
        areas: The memory that they are in.
        symbols: The symbols.

    Raises:
        OSError: the file cannot be written.
    """
    file = vmd_scratch.directory() / name
    with Path(vmd_guest.vmlinux()).open("rb") as vmlinux:
        machine = int.from_bytes(vmlinux.read(_E_MACHINE.stop)[_E_MACHINE], "little")
    file.write_bytes(content(machine, areas, symbols))
    with gdb.with_parameter("confirm", False):
        gdb.execute(f"add-symbol-file {shlex.quote(str(file))} -o 0", to_string=True)
    return file
