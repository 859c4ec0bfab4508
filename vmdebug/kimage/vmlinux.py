"""Reads the identity of a vmlinux."""

from __future__ import annotations

import itertools
import re
import zlib
from pathlib import Path
from typing import IO, Any

import msgspec

from vmdebug.errors import UsageError
from vmdebug.filecache import cached
from vmdebug.kimage import elf

_BANNER = re.compile(rb"Linux version (\d[^\0\n]{1,500})\n\0")
_NUMBER = re.compile(rb" #\d")

# Limits for damaged or hostile files; no kernel reaches them.
_MOST_SECTIONS = 4096
_LARGEST_RODATA = 256 << 20

_SHF_COMPRESSED = 0x800
_UNIT_SURELY = 64 << 10
"""This many compressed bytes include the head of the first unit."""


class Vmlinux(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel's ELF file.

    Args:
        build_id: GNU build-id in hex; "" if it has none.
        banner: "RELEASE (WHO@WHERE) (COMPILER) #N SMP DATE"; "" if the file does not have its data.
        has_dwarf: Whether it has types and source lines, not only symbols.
        arch: The row of `vmdebug.arch`.
    """

    build_id: str
    banner: str
    has_dwarf: bool
    arch: str

    @property
    def release(self) -> str:
        """`uname -r`, or ""."""
        return self.banner.partition(" ")[0]


def is_elf(path: Path) -> bool:
    """Whether a file is an ELF file.

    Raises:
        UsageError: it is not a regular file.
        HostError: this user may not read it.
    """
    with elf.opened(path) as stream:
        return stream.read(4) == b"\x7fELF"


def read_vmlinux(path: Path) -> Vmlinux:
    """Return a vmlinux's identity; from the cache while the file is unchanged.

    Raises:
        UsageError: it is not a linked kernel, or is for an architecture without a row.
        HostError: this user may not read it.
    """
    with elf.opened(path) as stream:
        return cached(path, "vmlinux", Vmlinux, lambda: _vmlinux(path, stream))


def dwarf_version(vmlinux: Path) -> int:
    """Return the DWARF version of a vmlinux's first unit; 0 if it has no DWARF.

    Raises:
        UsageError: it is not an ELF file, or is damaged.
        HostError: this user may not read it.
    """
    with elf.opened(vmlinux) as stream:
        file = elf.parse(vmlinux, stream)
        section = file.get_section_by_name(".debug_info")
        if not elf.has_bytes(section):
            return 0
        stream.seek(section["sh_offset"])
        start = stream.read(min(section["sh_size"], _UNIT_SURELY))
    if section["sh_flags"] & _SHF_COMPRESSED:
        start = _unpacked(start)
    # A unit begins with its length. 64-bit DWARF has 0xffffffff and 8 more bytes; see DWARF 5, 7.5.1.
    at = 12 if start.startswith(b"\xff\xff\xff\xff") else 4
    return int.from_bytes(start[at : at + 2], "little")


def _vmlinux(path: Path, stream: IO[bytes]) -> Vmlinux:
    if stream.read(4) != b"\x7fELF":
        raise UsageError(f"{path} is not a vmlinux: it is not an ELF file", hint=_WANTED_VMLINUX)
    file = elf.parse(path, stream)
    try:
        machine, kind = file["e_machine"], file["e_type"]
        sections = {
            section.name: section for section in itertools.islice(file.iter_sections(), _MOST_SECTIONS)
        }
        rodata = _bytes_of(stream, sections.get(".rodata"))
        found = Vmlinux(
            build_id=elf.build_id(file),
            banner=_banner(rodata),
            has_dwarf=any(elf.has_bytes(sections.get(name)) for name in (".debug_info", ".zdebug_info")),
            arch=elf.arch_of(path, machine),
        )
    except UsageError:
        raise
    except Exception as error:
        raise elf.damaged(path, error) from error
    why = _why_no_kernel(found, linked=kind in ("ET_EXEC", "ET_DYN"), rodata=rodata)
    if why:
        raise UsageError(f"{path} is not a vmlinux: {why}", hint=_WANTED_VMLINUX)
    return found


def _why_no_kernel(found: Vmlinux, *, linked: bool, rodata: bytes) -> str:
    if not linked:
        return "it is an ELF file that is not linked"
    # A file with only symbols does not have these bytes; it is identified by its build-id.
    if rodata and b"Linux version " not in rodata:
        return "it is an ELF file without 'Linux version' in it"
    if not found.build_id and not found.banner:
        return "it has neither a build-id nor 'Linux version'"
    return ""


_WANTED_VMLINUX = "give the vmlinux at the top of a build tree, or one of a debug package"


def _bytes_of(stream: IO[bytes], section: Any) -> bytes:
    if not elf.has_bytes(section):
        return b""
    stream.seek(section["sh_offset"])
    return stream.read(min(section["sh_size"], _LARGEST_RODATA))


def _unpacked(section: bytes) -> bytes:
    """Return the first bytes of a compressed section's content; see Elf64_Chdr in elf(5)."""
    kind, packed = int.from_bytes(section[:4], "little"), section[24:]
    if kind == 1:
        return zlib.decompressobj().decompress(packed, 16)
    import zstandard  # noqa: PLC0415 - rarely needed

    return zstandard.ZstdDecompressor().stream_reader(packed).read(16)


def _banner(rodata: bytes) -> str:
    found = _BANNER.findall(rodata)
    # Since 6.1 there are two: version.c's weak banner, without the build number, and version-timestamp.c's.
    numbered = [text for text in found if _NUMBER.search(text)]
    text = (numbered or found or [b""])[0].decode("ascii", errors="replace")
    return text if text.isprintable() else ""
