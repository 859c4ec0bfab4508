"""Finds the addresses of a few symbols of a vmlinux, without parsing its table of a hundred thousand."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import msgspec

from vmdebug.filecache import cached
from vmdebug.kimage import elf

_ROW = struct.Struct("<IBBHQQ")
"""Elf64_Sym: st_name, st_info, st_other, st_shndx, st_value, st_size."""

_FUNCTION_OR_OBJECT = (0, 1, 2)
"""STT_NOTYPE, STT_OBJECT, STT_FUNC."""


_FUNCTION = 2
"""STT_FUNC."""


THREAD_BYTES = 16 << 10
"""THREAD_SIZE of most kernels."""


class _Places(msgspec.Struct, frozen=True):
    places: tuple[tuple[int, int], ...]


def addresses(vmlinux: Path, name: str) -> tuple[int, ...]:
    """Return the linked addresses of the symbols of a name, of a 64-bit little-endian vmlinux.

    Args:
        vmlinux: The file; the answer comes from the cache while it is unchanged.
        name: The symbol's name.

    Raises:
        UsageError: it is not an ELF file, or is damaged.
        HostError: this user may not read it.
    """
    return tuple(address for address, _ in sized(vmlinux, name))


class Function(msgspec.Struct, frozen=True, array_like=True):
    """A function in the symbol table.

    Args:
        name: Its name.
        address: Its linked address.
        size: Its size in bytes; 0 if unknown.
    """

    name: str
    address: int
    size: int


def functions(vmlinux: Path) -> tuple[Function, ...]:
    """Return the functions of a vmlinux, and its assembler code that has a size, by address.

    Raises:
        UsageError: it is not an ELF file, or is damaged.
        HostError: this user may not read it.
    """
    with elf.opened(vmlinux) as stream:
        file = elf.parse(vmlinux, stream)
        try:
            table = file.get_section_by_name(".symtab")
            if not elf.has_bytes(table):
                return ()
            rows, names = table.data(), table.stringtable.data()
            found = [
                Function(_text(names, name), value, size)
                for name, info, _, section, value, size in _ROW.iter_unpack(rows)
                if (info & 0xF == _FUNCTION or (info & 0xF == 0 and size)) and section and value
            ]
        except Exception as error:
            raise elf.damaged(vmlinux, error) from error
    return tuple(sorted(found, key=lambda each: each.address))


def beginning(vmlinux: Path, prefix: str) -> list[str]:
    """Return the names of the symbols of a vmlinux that begin with a prefix, sorted.

    Raises:
        UsageError: it is not an ELF file, or is damaged.
        HostError: this user may not read it.
    """
    with elf.opened(vmlinux) as stream:
        file = elf.parse(vmlinux, stream)
        table = file.get_section_by_name(".symtab")
        names = table.stringtable.data() if elf.has_bytes(table) else b""
    wanted = prefix.encode()
    return sorted({each.decode(errors="replace") for each in names.split(b"\0") if each.startswith(wanted)})


def thread_size(vmlinux: Path) -> int:
    """Return THREAD_SIZE in bytes, the size of a kernel stack, by the first task's; it is larger with KASAN.

    See INIT_TASK_DATA of include/asm-generic/vmlinux.lds.h: the stack itself has no size in the symbol table.

    Raises:
        UsageError: it is not an ELF file, or is damaged.
        HostError: this user may not read it.
    """
    # Since Linux 6.10 (8f69cba096b5) the symbols are named for the stack.
    for what in ("stack", "task"):
        starts, ends = (addresses(vmlinux, f"__{each}_init_{what}") for each in ("start", "end"))
        if starts and ends:
            return ends[0] - starts[0]
    return THREAD_BYTES


def _text(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode(errors="replace")


def sized(vmlinux: Path, name: str) -> tuple[tuple[int, int], ...]:
    """Return the linked addresses and the sizes in bytes of the symbols of a name; see `addresses`.

    Raises:
        UsageError: it is not an ELF file, or is damaged.
        HostError: this user may not read it.
    """
    with elf.opened(vmlinux) as stream:
        found = cached(vmlinux, f"sized symbol {name}", _Places, lambda: _read_file(vmlinux, stream, name))
    return found.places


def _read_file(vmlinux: Path, stream: IO[bytes], name: str) -> _Places:
    file = elf.parse(vmlinux, stream)
    try:
        return _Places(_read(file, name))
    except Exception as error:
        raise elf.damaged(vmlinux, error) from error


def _read(file: object, name: str) -> tuple[tuple[int, int], ...]:
    table = file.get_section_by_name(".symtab")  # type: ignore[attr-defined] # pyelftools has no types
    if not elf.has_bytes(table):
        return ()
    rows, names = table.data(), table.stringtable.data()
    found: dict[int, int] = {}
    for offset in _places(names, name.encode() + b"\0"):
        for at in _places(rows, struct.pack("<I", offset)):
            if at % _ROW.size == 0:
                _, info, _, _, value, size = _ROW.unpack_from(rows, at)
                if info & 0xF in _FUNCTION_OR_OBJECT and value:
                    found[value] = max(size, found.get(value, 0))
    # Two symbols share bytes of the string table if the name of one ends with the name of the other.
    return tuple(sorted(found.items()))


def _places(data: bytes, wanted: bytes) -> list[int]:
    """Return the offsets in `data` at which `wanted` starts."""
    places, at = [], data.find(wanted)
    while at >= 0:
        places.append(at)
        at = data.find(wanted, at + 1)
    return places
