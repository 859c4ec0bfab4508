"""Whether the vmlinux describes the kernel's types, arguments and source lines, or has only symbols."""

from __future__ import annotations

import re
from collections.abc import Container

import gdb
import vmd_guest

_DWARF = (".debug_info", ".zdebug_info")

_NEEDS_TYPES = re.compile(r"unknown (?:return )?type|^No symbol|^No \w+ type named")
"""GDB's errors for an expression that uses what debugging information describes."""

REMEDY = "use the vmlinux of the kernel's -dbg or debuginfo package, or build with CONFIG_DEBUG_INFO_DWARF5=y"


def missing() -> bool:
    """Whether GDB has no debugging information of the kernel: neither in the vmlinux nor in another file."""
    return vmd_guest.has_vmlinux() and stripped(vmd_guest.vmlinux(), vmd_guest.vmlinux_sections())


def stripped(path: str, sections: Container[str]) -> bool:
    """Whether GDB has no debugging information of a file that it has loaded.

    Args:
        path: The file.
        sections: The names of its sections.
    """
    if any(each in sections for each in _DWARF):
        return False
    # GDB has loaded what a build-id or a .gnu_debuglink names; see "Objfiles In Python" in its manual.
    return not any(each.owner is not None and each.owner.filename == path for each in gdb.objfiles())


def lacking(what: str) -> str:
    """Return the error for something that needs debugging information.

    Args:
        what: What cannot be had without it: "struct task_struct".
    """
    return f"{vmd_guest.vmlinux()} has no debugging information, so GDB does not know {what}\n{REMEDY}"


def explained(error: Exception) -> str:
    """Return GDB's error; if it may be for lack of debugging information, with what to do."""
    words = str(error)
    if not _NEEDS_TYPES.search(words) or not missing():
        return words
    return f"{words}\n{vmd_guest.vmlinux()} has no debugging information: {REMEDY}"


def no_struct(name: str) -> str:
    """Return the error for a struct that GDB does not know."""
    if missing():
        return lacking(f"struct {name}")
    return f"{vmd_guest.vmlinux()} has no struct {name} in its debugging information"
