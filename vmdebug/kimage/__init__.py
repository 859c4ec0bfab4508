"""Reads the identity of kernel files, and checks whether two of them are of the same build.

A vmlinux and the kernel packed inside a boot image carry the same GNU build-id note, because both come from
one link (see `LDFLAGS_vmlinux` in the kernel's Makefile). Where one has no such note, their version strings
are compared: linux_banner of init/version-timestamp.c in the vmlinux, and the one in the image's header.

The names of this package are imported when they are first used: most callers read either images or ELF files.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmdebug.kimage.debuginfo import WITHOUT_DWARF, Dwarf, by_build_id, dwarf
    from vmdebug.kimage.formats import Image
    from vmdebug.kimage.identifying import Fingerprint, fingerprint
    from vmdebug.kimage.image import is_image, own_symbols, read_image, unified_parts, unknown_format
    from vmdebug.kimage.proof import Proof, build_id, check
    from vmdebug.kimage.vmlinux import Vmlinux, is_elf, read_vmlinux

__all__ = [
    "WITHOUT_DWARF",
    "Dwarf",
    "Fingerprint",
    "Image",
    "Proof",
    "Vmlinux",
    "build_id",
    "by_build_id",
    "check",
    "dwarf",
    "fingerprint",
    "is_elf",
    "is_image",
    "own_symbols",
    "read_image",
    "read_vmlinux",
    "unified_parts",
    "unknown_format",
]

_HOMES = {
    "debuginfo": ("WITHOUT_DWARF", "Dwarf", "by_build_id", "dwarf"),
    "identifying": ("Fingerprint", "fingerprint"),
    "formats": ("Image",),
    "image": ("is_image", "own_symbols", "read_image", "unified_parts", "unknown_format"),
    "proof": ("Proof", "build_id", "check"),
    "vmlinux": ("Vmlinux", "is_elf", "read_vmlinux"),
}

_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vmdebug.kimage' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"vmdebug.kimage.{_HOME[name]}"), name)
    return value
