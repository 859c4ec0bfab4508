"""Identifies a running kernel from its memory alone. Does not import GDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import vmd_elf

CHUNK = 1 << 20
REACH = 64 << 20
"""The most bytes from the entry code to a kernel's notes: text, rodata and tables are in between."""

BANNER = b"Linux version "
BUILD_ID = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"
_NOTE_SIZE = len(BUILD_ID) + 20

_PAGE = 4096
_VDSO_PAGES = 2


class Kernel(NamedTuple):
    """A kernel's identity; a field is "" if it was not found.

    Args:
        banner: `linux_banner`, one line.
        build_id: GNU build-id in hex.
    """

    banner: str
    build_id: str


def kernel(memory: Callable[[int, int], bytes], start: int) -> Kernel:
    """Search memory for a kernel's banner and build-id.

    Args:
        memory: Reads guest memory (address, size); returns b"" if any of it is not mapped.
        start: An address in the kernel's text; both are after it.
    """
    seen = bytearray()
    first = start & ~(_PAGE - 1)
    while len(seen) < REACH:
        seen += _chunk(memory, first + len(seen))
        # The notes come last: after them there is no banner.
        build_id = _build_id(seen)
        if build_id:
            return Kernel(_banner(seen), build_id)
    return Kernel(_banner(seen), "")


def _chunk(memory: Callable[[int, int], bytes], address: int) -> bytes:
    """Return CHUNK bytes, with zeros for unmapped pages: there are gaps between a kernel's sections."""
    whole = memory(address, CHUNK)
    if whole:
        return whole
    return b"".join(memory(at, _PAGE) or bytes(_PAGE) for at in range(address, address + CHUNK, _PAGE))


def _banner(data: bytearray) -> str:
    """Return the longest line that begins like a banner: the others are format strings, or lack the date."""
    lines = [line for line in _lines(data) if b"%" not in line]
    return max(lines, key=len, default=b"").decode(errors="replace")


def _lines(data: bytearray) -> Iterator[bytes]:
    at = data.find(BANNER)
    while at >= 0:
        end = data.find(b"\n", at)
        yield bytes(data[at:end])
        at = data.find(BANNER, at + 1)


def _build_id(data: bytearray) -> str:
    at = data.find(BUILD_ID)
    while at >= 0:
        if not _in_vdso(data, at):
            return vmd_elf.build_id(bytes(data[at : at + _NOTE_SIZE]))
        at = data.find(BUILD_ID, at + 1)
    return ""


def _in_vdso(data: bytearray, at: int) -> bool:
    """Whether a note is in an ELF image inside the kernel: the vDSOs have their own build-ids."""
    page = at - at % _PAGE
    starts = (page - back * _PAGE for back in range(_VDSO_PAGES))
    return any(start >= 0 and data.startswith(b"\x7fELF", start) for start in starts)
