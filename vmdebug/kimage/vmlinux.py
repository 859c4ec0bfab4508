"""What a vmlinux says about itself."""

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

# A damaged or hostile file may claim any number of these; no kernel has as many.
_MOST_SECTIONS = 4096
_LARGEST_RODATA = 256 << 20

_SHF_COMPRESSED = 0x800
_UNIT_SURELY = 64 << 10
"""Packed, this much begins with the head of the first unit."""


class Vmlinux(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel's ELF file.

    Args:
        build_id: GNU build-id in hex; "" where it carries none.
        banner: "RELEASE (WHO@WHERE) (COMPILER) #N SMP DATE"; "" where its data are not in the file.
        has_dwarf: Whether it has types and lines, not symbols alone.
        arch: Row of `vmdebug.arch`.
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
        UsageError: it is no regular file.
        HostError: it may not be read.
    """
    with elf.opened(path) as stream:
        return stream.read(4) == b"\x7fELF"


def read_vmlinux(path: Path) -> Vmlinux:
    """Return what a vmlinux says; from the cache while the file stays the same.

    Raises:
        UsageError: it is no linked kernel, or one for a machine that vmdebug does not know.
        HostError: it may not be read.
    """
    with elf.opened(path) as stream:
        return cached(path, "vmlinux", Vmlinux, lambda: _vmlinux(path, stream))


def dwarf_version(vmlinux: Path) -> int:
    """Return the version of the DWARF in a vmlinux, by its first unit; 0 where there is none.

    Raises:
        UsageError: it is no ELF file, or a damaged one.
        HostError: it may not be read.
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
    # A unit begins with its length: of 64-bit DWARF by 0xffffffff and 8 bytes more; see DWARF 5, 7.5.1.
    at = 12 if start.startswith(b"\xff\xff\xff\xff") else 4
    return int.from_bytes(start[at : at + 2], "little")


def _vmlinux(path: Path, stream: IO[bytes]) -> Vmlinux:
    if stream.read(4) != b"\x7fELF":
        raise UsageError(f"{path} is no vmlinux: not an ELF file", hint=_WANTED_VMLINUX)
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
        raise UsageError(f"{path} is no vmlinux: {why}", hint=_WANTED_VMLINUX)
    return found


def _why_no_kernel(found: Vmlinux, *, linked: bool, rodata: bytes) -> str:
    if not linked:
        return "an ELF file that is not linked"
    # A file of symbols alone has no such bytes, and its build-id must do.
    if rodata and b"Linux version " not in rodata:
        return "an ELF file, but not a kernel: there is no 'Linux version' in it"
    if not found.build_id and not found.banner:
        return "neither build-id nor 'Linux version' in it"
    return ""


_WANTED_VMLINUX = "give the vmlinux that `make` leaves at the top of a build tree, or a debug package's"


def _bytes_of(stream: IO[bytes], section: Any) -> bytes:
    if not elf.has_bytes(section):
        return b""
    stream.seek(section["sh_offset"])
    return stream.read(min(section["sh_size"], _LARGEST_RODATA))


def _unpacked(section: bytes) -> bytes:
    """Return how the content of a compressed section begins; see Elf64_Chdr in elf(5)."""
    kind, packed = int.from_bytes(section[:4], "little"), section[24:]
    if kind == 1:
        return zlib.decompressobj().decompress(packed, 16)
    import zstandard  # noqa: PLC0415 - rarely needed

    return zstandard.ZstdDecompressor().stream_reader(packed).read(16)


def _banner(rodata: bytes) -> str:
    found = _BANNER.findall(rodata)
    # Since 6.1 version.c's weak banner, without a build's number, stays beside version-timestamp.c's.
    numbered = [text for text in found if _NUMBER.search(text)]
    text = (numbered or found or [b""])[0].decode("ascii", errors="replace")
    return text if text.isprintable() else ""
