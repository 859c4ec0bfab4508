"""Adds to QEMU's dumps what readers need: the kernel's name and vmcoreinfo.

A compressed dump of QEMU has an empty utsname, which drgn refuses. Without a driver in the guest that tells
QEMU where vmcoreinfo is, a dump has none. See include/sysemu/dump.h and dump/dump.c of QEMU, diskdump_mod.h
and makedumpfile.h of makedumpfile, and elf(5).
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

from vmdebug import kimage
from vmdebug.guest import Kernel

_KDUMP = b"KDUMP   "
_FLATTENED = b"makedumpfile\0"
_FLATTENED_HEADER = 4096
_RECORD = struct.Struct(">qq")
"""makedumpfile_data_header: where the data belongs, and its size; both -1 at the end."""

_PIECE = 1 << 20

_UTSNAME, _NAME = 12, 65
"""Offset of `struct new_utsname` in the header of a compressed dump, and the size of its six names."""

_BLOCK_SIZE = struct.Struct("<I")
_BLOCK_SIZE_AT = 428
_SUB_HEADER = struct.Struct("<QIIQQQQQQ")
"""The beginning of kdump_sub_header64: phys_base, dump_level, split, start_pfn, end_pfn, then the place and
the size of vmcoreinfo and of the notes."""

_PHYS_BASE, _INFO_AT, _INFO_SIZE, _NOTES_AT, _NOTES_SIZE = 0, 5, 6, 7, 8

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDRS_AT, _SECTIONS_AT, _PHDRS, _SECTIONS = 5, 6, 10, 12
"""e_phoff, e_shoff, e_phnum and e_shnum among the fields of the header; see elf(5)."""

_PHDR = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_PHDR_OFFSET, _PHDR_FILE_SIZE, _PHDR_MEMORY_SIZE, _SECTION_OFFSET = 2, 5, 6, 4
_PT_NOTE = 4
_NOTE = struct.Struct("<III")
_INFO_NAME = b"VMCOREINFO\0"

_OFFSET = re.compile(rb"^KERNELOFFSET=([0-9a-f]+)$", re.MULTILINE)
_PHYSICAL = re.compile(rb"^NUMBER\(phys_base\)=(-?\d+)$", re.MULTILINE)
_VERSION = re.compile(r" (#\d.*)$")


def is_flattened(path: Path) -> bool:
    """Whether a dump is in makedumpfile's flattened form, which is made for pipes."""
    with path.open("rb") as file:
        return file.read(len(_FLATTENED)) == _FLATTENED


def unflatten(path: Path, target: Path) -> None:
    """Write a flattened dump in its usual form, as `makedumpfile -R` does.

    Raises:
        OSError: a file cannot be read or written.
    """
    with path.open("rb") as source, target.open("wb") as out:
        source.seek(_FLATTENED_HEADER)
        while len(head := source.read(_RECORD.size)) == _RECORD.size:
            at, size = _RECORD.unpack(head)
            if at < 0 or size < 0:
                break
            out.seek(at)
            while size:
                data = source.read(min(size, _PIECE))
                if not data:
                    raise OSError(0, "QEMU's file ends too early", str(path))
                out.write(data)
                size -= len(data)
    target.chmod(0o600)


def complete(path: Path, kernel: Kernel, vmcoreinfo: Callable[[], bytes]) -> int | None:
    """Add the kernel's name and its vmcoreinfo to a dump, if it lacks them.

    Args:
        path: The dump, not flattened.
        kernel: The kernel in it.
        vmcoreinfo: Returns vmcoreinfo; called if the dump has none.

    Returns:
        By how many bytes KASLR moved the kernel, according to vmcoreinfo; None if there is none.

    Raises:
        OSError: the file cannot be read or written.
    """
    with path.open("rb") as file:
        is_kdump = file.read(len(_KDUMP)) == _KDUMP
    info = _complete_kdump(path, kernel, vmcoreinfo) if is_kdump else _complete_elf(path, vmcoreinfo)
    found = _OFFSET.search(info)
    return int(found[1], 16) if found else None


def _complete_kdump(path: Path, kernel: Kernel, vmcoreinfo: Callable[[], bytes]) -> bytes:
    with path.open("r+b") as file:
        file.seek(_UTSNAME)
        if not file.read(_NAME).strip(b"\0"):
            file.seek(_UTSNAME)
            file.write(_utsname(kernel))
        file.seek(_BLOCK_SIZE_AT)
        (block,) = _BLOCK_SIZE.unpack(file.read(_BLOCK_SIZE.size))
        file.seek(block)
        fields = list(_SUB_HEADER.unpack(file.read(_SUB_HEADER.size)))
        if fields[_INFO_SIZE]:
            return _at(file, fields[_INFO_AT], fields[_INFO_SIZE])
        info = vmcoreinfo()
        if info:
            _add_to_kdump(file, block, fields, info)
    return info


def _add_to_kdump(file: IO[bytes], block: int, fields: list[int], info: bytes) -> None:
    """Write the notes again at the end of a compressed dump, with vmcoreinfo among them.

    Args:
        file: The dump.
        block: Where its sub header is.
        fields: Those of the sub header.
        info: vmcoreinfo.
    """
    notes = _at(file, fields[_NOTES_AT], fields[_NOTES_SIZE])
    end = file.seek(0, os.SEEK_END)
    at = file.seek(end + -end % 8)
    added = _note(info)
    file.write(notes + added)
    fields[_NOTES_AT], fields[_NOTES_SIZE] = at, len(notes) + len(added)
    fields[_INFO_AT] = at + len(notes) + added.index(info)
    fields[_INFO_SIZE] = len(info)
    physical = _PHYSICAL.search(info)
    fields[_PHYS_BASE] = int(physical[1]) % (1 << 64) if physical else fields[_PHYS_BASE]
    file.seek(block)
    file.write(_SUB_HEADER.pack(*fields))


def _utsname(kernel: Kernel) -> bytes:
    banner = kimage.read_vmlinux(kernel.vmlinux).banner if kernel.vmlinux is not None else ""
    version = _VERSION.search(banner)
    names = ("Linux", "(none)", kernel.release, version[1] if version else "", kernel.arch, "(none)")
    return b"".join(name.encode()[: _NAME - 1].ljust(_NAME, b"\0") for name in names)


def _complete_elf(path: Path, vmcoreinfo: Callable[[], bytes]) -> bytes:
    with path.open("rb") as file:
        header = _HEADER.unpack(file.read(_HEADER.size))
        (kind, _, offset, _, _, size, _, _) = _PHDR.unpack(_at(file, header[_PHDRS_AT], _PHDR.size))
        if kind != _PT_NOTE:
            return b""
        info = _info(_at(file, offset, size))
        if info:
            return info
        info = vmcoreinfo()
        if info:
            _insert_in_elf(path, file, list(header), offset + size, _note(info))
    return info


def _insert_in_elf(path: Path, file: IO[bytes], header: list[int], at: int, note: bytes) -> None:
    """Write an ELF dump again, with a further note after those at its beginning: crash reads only there.

    Args:
        path: The dump, which is replaced.
        file: The same.
        header: The fields of its header.
        at: Where the note belongs.
        note: The note.
    """
    before = bytearray(_at(file, 0, at))
    for number in range(header[_PHDRS]):
        row = _Row(before, header[_PHDRS_AT] + number * _PHDR.size, _PHDR)
        row.move(_PHDR_OFFSET, at, len(note))
        if number == 0:
            row.add(_PHDR_FILE_SIZE, len(note))
            row.add(_PHDR_MEMORY_SIZE, len(note))
    if header[_SECTIONS_AT] < at:
        for number in range(header[_SECTIONS]):
            place = header[_SECTIONS_AT] + number * _SECTION.size
            _Row(before, place, _SECTION).move(_SECTION_OFFSET, at, len(note))
    _Row(before, 0, _HEADER).move(_SECTIONS_AT, at, len(note))
    whole = path.with_name(f"{path.name}.whole")
    try:
        with whole.open("wb") as out:
            whole.chmod(0o600)
            out.write(before + note)
            file.seek(at)
            shutil.copyfileobj(file, out, _PIECE)
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)


class _Row:
    """A row of a table in some bytes.

    Args:
        data: The bytes, which are changed.
        at: Where the row is; a row that is not wholly in them is left alone.
        layout: Its fields.
    """

    def __init__(self, data: bytearray, at: int, layout: struct.Struct) -> None:
        self._data = data
        self._at = at
        self._layout = layout
        self._inside = at + layout.size <= len(data)

    def add(self, field: int, number: int) -> None:
        """Add a number to a field."""
        if self._inside:
            fields = list(self._layout.unpack_from(self._data, self._at))
            fields[field] += number
            self._layout.pack_into(self._data, self._at, *fields)

    def move(self, field: int, start: int, distance: int) -> None:
        """Add a distance to an offset, if it is at or after a start."""
        if self._inside and self._layout.unpack_from(self._data, self._at)[field] >= start:
            self.add(field, distance)


def _note(info: bytes) -> bytes:
    return _NOTE.pack(len(_INFO_NAME), len(info), 0) + _padded(_INFO_NAME) + _padded(info)


def _at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _info(notes: bytes) -> bytes:
    """Return vmcoreinfo in notes; b"" if it is not among them."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, _ = _NOTE.unpack_from(notes, at)
        name_at = at + _NOTE.size
        data_at = name_at + -(-name_size // 4) * 4
        if notes[name_at : name_at + name_size] == _INFO_NAME:
            return notes[data_at : data_at + size]
        at = data_at + -(-size // 4) * 4
    return b""


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
