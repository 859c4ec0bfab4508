"""Reads unified kernel images: PE files of EFI with a kernel, its initramfs and its parameters in sections.

See the UAPI Group's specification "Unified Kernel Image (UKI)", and "PE Format" in Microsoft's documentation.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO

from vmdebug.kimage.packed import BadImageError

KERNEL, INITRD, PARAMETERS = ".linux", ".initrd", ".cmdline"

LARGEST = 1 << 30
"""The largest size of a section, in bytes."""

MISSING = "no PE file with a .linux section"

_MOST_SECTIONS = 96
"""The limit of Windows' loader; EFI's is not lower."""

_PE_AT = 0x3C
_COFF = struct.Struct("<4sHHIIIHH")
_SECTION = struct.Struct("<8sIIIIIIHHI")


@dataclass(frozen=True, slots=True)
class Section:
    """The place of a section's content in the file."""

    offset: int
    size: int


def sections(start: bytes) -> dict[str, Section]:
    """Return the sections of a unified kernel image by name; none for any other file.

    Args:
        start: The bytes that the file begins with, as many as `Format.recognises` gets.

    Of an image with several profiles these are the first one's.
    """
    if not start.startswith(b"MZ") or len(start) < _PE_AT + 4:
        return {}
    (at,) = struct.unpack_from("<I", start, _PE_AT)
    if at + _COFF.size > len(start):
        return {}
    magic, _, count, _, _, _, optional, _ = _COFF.unpack_from(start, at)
    if magic != b"PE\0\0":
        return {}
    found: dict[str, Section] = {}
    for number in range(min(count, _MOST_SECTIONS)):
        place = at + _COFF.size + optional + number * _SECTION.size
        if place + _SECTION.size > len(start):
            break
        name, size, _, stored, offset, *_ = _SECTION.unpack_from(start, place)
        # SizeOfRawData is padded. VirtualSize is exact, and 0 only in object files.
        section = Section(offset, min(size or stored, stored))
        found.setdefault(name.rstrip(b"\0").decode("ascii", errors="replace"), section)
    return found if KERNEL in found else {}


def content(stream: IO[bytes], section: Section) -> bytes:
    """Return the content of a section.

    Raises:
        BadImageError: the file does not have all of it.
    """
    if section.size > LARGEST:
        raise BadImageError(f"a unified kernel image with a section of {section.size} bytes")
    stream.seek(section.offset)
    data = stream.read(section.size)
    if len(data) < section.size:
        raise BadImageError(f"a unified kernel image cut off in the section at byte {section.offset}")
    return data
