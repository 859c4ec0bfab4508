"""Reads the identity of a vmlinux."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import IO, Any

import msgspec

from vmdebug.errors import UsageError
from vmdebug.filecache import cached
from vmdebug.kimage import elf

_BANNER = re.compile(rb"Linux version (\d[^\0\n]{1,500})\n\0")
_NUMBER = re.compile(rb" #\d")

# Limits that protect from damaged and malicious files; no kernel reaches them.
_MOST_SECTIONS = 4096
_LARGEST_RODATA = 256 << 20


class Vmlinux(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel's ELF file.

    Args:
        build_id: GNU build-id in hex; "" if it has none.
        banner: "RELEASE (WHO@WHERE) (COMPILER) #N SMP DATE"; "" if the file does not have its data.
        arch: The row of `vmdebug.arch`.
    """

    build_id: str
    banner: str
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


def _banner(rodata: bytes) -> str:
    found = _BANNER.findall(rodata)
    # Since 6.1 there are two: version.c's weak banner, without the build number, and version-timestamp.c's.
    numbered = [text for text in found if _NUMBER.search(text)]
    text = (numbered or found or [b""])[0].decode("ascii", errors="replace")
    return text if text.isprintable() else ""
