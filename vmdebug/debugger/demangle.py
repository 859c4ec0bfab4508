"""Whether the symbols of a kernel need demangling, which costs GDB time when it loads them.

Only the names of Rust code are mangled (rustc's symbol-mangling v0). GDB tries the manglings of eight
languages on each symbol, which takes a tenth of the time from a clone to its first breakpoint, and finds none
in a kernel of C. This reads the tables itself, because importing pyelftools takes longer than it saves.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

STYLE = "demangle-style"
"""GDB's setting: `none` or `auto`."""

_RUST = b"\0_R"
_ELF64_LITTLE = b"\x7fELF\2\1"
_STRING_TABLE = 3
_SECTION_HEADERS = 0x28
"""Offset of e_shoff in an ELF64 header; e_shentsize and e_shnum are at `_SECTION_SIZES`. See elf(5)."""
_SECTION_SIZES = 0x3A
_TYPE, _PLACE = 4, 0x18
"""Offsets in a section header: of sh_type, and of sh_offset with sh_size."""


def style(vmlinux: Path) -> str:
    """Return the value of GDB's `demangle-style` to load a file with.

    Args:
        vmlinux: The ELF file. One that cannot be read here may have mangled names.
    """
    try:
        with vmlinux.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as image:
            return "auto" if _has_mangled_names(image) else "none"
    except (OSError, ValueError, OverflowError, struct.error):
        return "auto"


def _has_mangled_names(image: mmap.mmap) -> bool:
    if image[: len(_ELF64_LITTLE)] != _ELF64_LITTLE:
        return True
    (headers,) = struct.unpack_from("<Q", image, _SECTION_HEADERS)
    size, count = struct.unpack_from("<HH", image, _SECTION_SIZES)
    for at in range(headers, headers + size * count, size):
        (kind,) = struct.unpack_from("<I", image, at + _TYPE)
        start, length = struct.unpack_from("<QQ", image, at + _PLACE)
        if kind == _STRING_TABLE and image.find(_RUST, start, start + length) >= 0:
            return True
    return False
