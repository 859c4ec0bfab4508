"""A loaded module: symbols, DWARF and ORC table of its file, at the addresses where the kernel placed it."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from vmdebug.errors import UsageError
from vmdebug.kimage import elf, module_file
from vmdebug.kimage.symbols import Function

_SYMBOL = struct.Struct("<IBBHQQ")
"""Elf64_Sym: st_name, st_info, st_other, st_shndx, st_value, st_size."""

_VALUE_OFFSET = 8
_RELOCATION = struct.Struct("<QQq")
"""Elf64_Rela: r_offset, r_info, r_addend."""

_NO_TYPE, _OBJECT, _FUNCTION = 0, 1, 2
"""STT_NOTYPE, STT_OBJECT, STT_FUNC."""

_FREED = ".init"
"""The start of the names of the sections that the kernel frees when the module has started."""


class PlacedModule(msgspec.Struct, frozen=True, kw_only=True):
    """A module in a guest's memory.

    Args:
        name: The kernel's name of it.
        file: Its file with symbols, compressed or not.
        sections: The runtime addresses of its ELF sections, by name: those of /sys/module/NAME/sections.
    """

    name: str
    file: Path
    sections: dict[str, int]


class ModuleImage:
    """The file of a loaded module, with addresses as if the module were part of the vmlinux.

    Args:
        module: The module.
        slide: How far KASLR has moved the kernel: "linked" addresses are runtime addresses less this.

    Raises:
        UsageError: the file cannot be read, or is damaged.
    """

    def __init__(self, module: PlacedModule, slide: int) -> None:
        self._module = module
        try:
            content = bytearray(module_file.read(module.file))
        except (OSError, ValueError) as error:
            raise UsageError(f"{module.file} cannot be read: {error}", hint="is it whole?") from error
        self._file = elf.parse(module.file, io.BytesIO(content))
        try:
            self._linked = self._addresses(slide)
            self._place(content)
            self._file = elf.parse(module.file, io.BytesIO(content))
        except Exception as error:
            raise elf.damaged(module.file, error) from error

    @functools.cached_property
    def dwarf(self) -> Any:
        """Its DWARF; None if it has none, or DWARF that only GDB can read.

        Raises:
            UsageError: the file is damaged.
        """
        try:
            return self._file.get_dwarf_info() if self._file.has_dwarf_info() else None
        except Exception as error:
            raise elf.damaged(self._module.file, error) from error

    @functools.cached_property
    def aranges(self) -> Any:
        """The DWARF's index of addresses; None if it has none."""
        return self.dwarf.get_aranges() if self.dwarf is not None else None

    def _addresses(self, slide: int) -> dict[int, int]:
        """Return the linked addresses of the sections in memory, by their number."""
        known = {
            name: at - slide for name, at in self._module.sections.items() if not name.startswith(_FREED)
        }
        return {
            number: known[section.name]
            for number, section in enumerate(self._file.iter_sections())
            if section.name in known
        }

    def _place(self, content: bytearray) -> None:
        """Add the address of its section to each symbol, so that pyelftools relocates the DWARF to it."""
        table = self._file.get_section_by_name(".symtab")
        if not elf.has_bytes(table):
            return
        start = table["sh_offset"]
        for at in range(start, start + table["sh_size"], _SYMBOL.size):
            _, _, _, section, value, _ = _SYMBOL.unpack_from(content, at)
            if section in self._linked:
                placed = value + self._linked[section]
                struct.pack_into("<Q", content, at + _VALUE_OFFSET, placed & (1 << 64) - 1)

    @functools.cached_property
    def _symbols(self) -> dict[str, list[tuple[int, int, int]]]:
        """The addresses, sizes and types of the symbols in memory, by name."""
        table = self._file.get_section_by_name(".symtab")
        found: dict[str, list[tuple[int, int, int]]] = {}
        if not elf.has_bytes(table):
            return found
        for row in _SYMBOL.iter_unpack(table.data()):
            name, info, _, section, value, size = row
            if section in self._linked and info & 0xF in (_NO_TYPE, _OBJECT, _FUNCTION):
                found.setdefault(table.stringtable.get_string(name), []).append((value, size, info & 0xF))
        return found

    def sized(self, symbol: str) -> tuple[tuple[int, int], ...]:
        """Return the linked addresses and the sizes of a symbol."""
        return tuple(sorted((value, size) for value, size, _ in self._symbols.get(symbol, ())))

    def beginning(self, prefix: str) -> list[str]:
        """Return the names of the symbols that begin with a prefix."""
        return [each for each in self._symbols if each.startswith(prefix)]

    @functools.cached_property
    def functions(self) -> tuple[Function, ...]:
        """Its functions by address."""
        found = (
            Function(name, value, size)
            for name, places in self._symbols.items()
            for value, size, kind in places
            if kind == _FUNCTION
        )
        return tuple(sorted(found, key=lambda each: each.address))

    def orc(self) -> Iterator[tuple[int, bytes]]:
        """Yield the linked addresses of the ORC table, and their entries of 6 bytes.

        The addresses are in the relocations of `.orc_unwind_ip`: the linker has not computed them.
        """
        entries = self._file.get_section_by_name(".orc_unwind")
        relocations = self._file.get_section_by_name(".rela.orc_unwind_ip")
        table: Any = self._file.get_section_by_name(".symtab")
        if not all(elf.has_bytes(each) for each in (entries, relocations, table)):
            return
        data, symbols = entries.data(), table.data()
        for offset, info, addend in _RELOCATION.iter_unpack(relocations.data()):
            _, _, _, section, value, _ = _SYMBOL.unpack_from(symbols, (info >> 32) * _SYMBOL.size)
            if section in self._linked:
                number = offset // 4
                yield value + addend, data[6 * number : 6 * number + 6]
