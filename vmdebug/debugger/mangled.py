"""Whether the names of a kernel's symbols are mangled: those of Rust are, see rustc's symbol-mangling v0.

GDB tries the manglings of eight languages on each symbol of a file that it loads, a tenth of the time to a
breakpoint in a clone, and finds none in a kernel of C.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

STYLE = "demangle-style"
"""GDB's setting of it: `none` or `auto`."""

_RUST = b"\0_R"
_ELF64_LITTLE = b"\x7fELF\2\1"
_STRING_TABLE = 3
_SECTION_HEADERS = 0x28
"""Where an ELF64 header has e_shoff; e_shentsize and e_shnum are at `_SECTION_SIZES`. See elf(5)."""
_SECTION_SIZES = 0x3A
_TYPE, _PLACE = 4, 0x18
"""Where a section's header has sh_type; sh_offset and sh_size."""


def found(vmlinux: Path) -> bool:
    """Say whether a file has mangled names; one that cannot be read may have some.

    Args:
        vmlinux: The ELF file.
    """
    try:
        with vmlinux.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as image:
            return _found(image)
    except (OSError, ValueError, OverflowError, struct.error):
        return True


def _found(image: mmap.mmap) -> bool:
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
