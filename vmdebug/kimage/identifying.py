"""The bytes of a vmlinux that identify the running kernel: its notes with the build-id, or its banner."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import msgspec

from vmdebug.filecache import cached
from vmdebug.kimage import elf, symbols
from vmdebug.kimage.vmlinux import read_vmlinux

_LARGEST_NOTES = 64 << 10
_BANNER = "linux_banner"


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that the running kernel has in its memory.

    Args:
        name: What they are, for messages.
        address: Their linked address; KASLR adds the slide.
        data: The bytes; empty if the vmlinux has nothing that identifies it.
    """

    name: str
    address: int
    data: bytes


def fingerprint(vmlinux: Path) -> Fingerprint:
    """Return the fingerprint of a vmlinux; from the cache while the file is unchanged.

    Raises:
        UsageError: it is not a vmlinux, or is damaged.
        HostError: this user may not read it.
    """
    with elf.opened(vmlinux) as stream:
        return cached(vmlinux, "fingerprint", Fingerprint, lambda: _read(vmlinux, stream))


def _read(vmlinux: Path, stream: IO[bytes]) -> Fingerprint:
    says = read_vmlinux(vmlinux)
    notes = elf.parse(vmlinux, stream).get_section_by_name(".notes")
    if says.build_id and elf.has_bytes(notes):
        stream.seek(notes["sh_offset"])
        data = stream.read(min(notes["sh_size"], _LARGEST_NOTES))
        return Fingerprint(name="build-id note", address=notes["sh_addr"], data=data)
    places = symbols.addresses(vmlinux, _BANNER)
    known = says.banner and len(places) == 1
    return Fingerprint(
        name=_BANNER,
        address=places[0] if known else 0,
        data=f"Linux version {says.banner}\n".encode() if known else b"",
    )
