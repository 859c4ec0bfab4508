"""Finds the debugging information of a vmlinux where GDB finds it: in the file, in another file, or in many.

See "Debugging Information in Separate Files" in GDB's manual, and appendix E of DWARF 5 for `.dwo` files.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.filecache import cached
from vmdebug.kimage import elf
from vmdebug.paths import or_false

WITHOUT_DWARF = (
    "use the vmlinux of the kernel's -dbg or debuginfo package, or build with CONFIG_DEBUG_INFO_DWARF5=y"
)
"""What to do about a vmlinux without debugging information."""

ROOT = Path("/")
"""Where `usr/lib/debug` is."""

_DEBUG = "usr/lib/debug"
"""GDB's `debug-file-directory`, and that of binutils, as distributions build them."""

_LISTING_SECONDS = 60.0

_SHF_COMPRESSED = 0x800
_COMPRESSIONS = {1: "zlib", 2: "zstd"}
"""`ch_type` of Elf64_Chdr; see elf(5)."""

_UNIT_SURELY = 256 << 10
"""This many compressed bytes include the head of the first unit: a block of zstd has at most 128 KiB."""

_OLD_MAGIC = b"ZLIB"
"""What `.zdebug_info` begins with: the form before SHF_COMPRESSED, zlib data after a size of 8 bytes."""

_SPLIT = re.compile(r"^\s+Name:\s+(?P<name>.+\.dwo)\n\s+Directory:\s+(?P<directory>/.*)$", re.MULTILINE)
"""A unit whose rest is in a `.dwo` file, as `readelf --debug-dump=links` prints it."""


class Dwarf(msgspec.Struct, frozen=True, kw_only=True):
    """The debugging information of a vmlinux.

    Args:
        version: The DWARF version of the first unit; 0: there is none.
        compression: How its sections are compressed: "zstd", "zlib"; "" if they are not.
        file: The separate file that has it; "" if the vmlinux itself does.
        how: What names that file: "build-id" or ".gnu_debuglink"; "" without one.
        split: How many units have their types in `.dwo` files.
        lacking: The `.dwo` files that do not exist.
    """

    version: int = 0
    compression: str = ""
    file: str = ""
    how: str = ""
    split: int = 0
    lacking: tuple[str, ...] = ()


def dwarf(vmlinux: Path) -> Dwarf:
    """Return what debugging information GDB finds for a vmlinux.

    Raises:
        UsageError: it is not an ELF file, or is damaged.
        HostError: this user may not read it.
    """
    own = _in_file(vmlinux)
    if own.version:
        return own
    for how, file in _separate(vmlinux):
        there = _in_file(file)
        if there.version:
            return msgspec.structs.replace(there, file=str(file), how=how)
    return own


def by_build_id(build_id: str) -> Path | None:
    """Return the file of a debug package that has a build-id; None if none is installed."""
    if not build_id:
        return None
    file = ROOT / _DEBUG / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    return file if or_false(file.is_file) else None


def _in_file(path: Path) -> Dwarf:
    with elf.opened(path) as stream:
        found = cached(path, "dwarf", Dwarf, lambda: _read(path, elf.parse(path, stream)))
    packed = found.split and or_false(path.with_name(f"{path.name}.dwp").is_file)
    lacking = () if packed else tuple(each for each in found.lacking if not or_false(Path(each).is_file))
    return msgspec.structs.replace(found, lacking=lacking)


def _read(path: Path, file: Any) -> Dwarf:
    try:
        section = file.get_section_by_name(".debug_info") or file.get_section_by_name(".zdebug_info")
        if not elf.has_bytes(section):
            return Dwarf()
        file.stream.seek(section["sh_offset"])
        start, compression = _unpacked(section, file.stream.read(min(section["sh_size"], _UNIT_SURELY)))
        # Units that are split refer to their addresses by an index into this section.
        split = _split(path) if file.get_section_by_name(".debug_addr") is not None else ()
    except Exception as error:
        raise elf.damaged(path, error) from error
    # A unit begins with its length. 64-bit DWARF has 0xffffffff and 8 more bytes; see DWARF 5, 7.5.1.
    at = 12 if start.startswith(b"\xff\xff\xff\xff") else 4
    version = int.from_bytes(start[at : at + 2], "little")
    # Whether these files exist is looked up each time.
    return Dwarf(version=version, compression=compression, split=len(split), lacking=split)


def _unpacked(section: Any, start: bytes) -> tuple[bytes, str]:
    """Return the first bytes of a section's content, and its compression."""
    if start.startswith(_OLD_MAGIC):
        return zlib.decompressobj().decompress(start[12:], 16), "zlib"
    if not section["sh_flags"] & _SHF_COMPRESSED:
        return start, ""
    compression, packed = _COMPRESSIONS[int.from_bytes(start[:4], "little")], start[24:]
    if compression == "zlib":
        return zlib.decompressobj().decompress(packed, 16), compression
    import zstandard  # noqa: PLC0415 - rarely needed

    return zstandard.ZstdDecompressor().stream_reader(packed).read(16), compression


def _split(path: Path) -> tuple[str, ...]:
    """Return the `.dwo` files that a file names."""
    readelf = process.find("readelf", package="binutils")
    # readelf fails if one of the files does not exist, after it has printed its name.
    said = process.run(
        [readelf, "--debug-dump=links", path], deadline=Deadline.after(_LISTING_SECONDS), check=False
    ).stdout
    return tuple(str(Path(each["directory"], each["name"])) for each in _SPLIT.finditer(said))


def _separate(vmlinux: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files that GDB would take the debugging information from, and what names each."""
    with elf.opened(vmlinux) as stream:
        file = elf.parse(vmlinux, stream)
        build_id, link = elf.build_id(file), _debuglink(file)
    named = by_build_id(build_id)
    if named is not None and elf.build_id_of(named) == build_id:
        yield "build-id", named
    if link is None:
        return
    name, checksum = link
    top = vmlinux.resolve().parent
    for place in (top, top / ".debug", ROOT / _DEBUG / top.relative_to("/")):
        other = place / name
        if other != vmlinux.resolve() and or_false(other.is_file) and _checksum(other) == checksum:
            yield ".gnu_debuglink", other


def _debuglink(file: Any) -> tuple[str, int] | None:
    """Return the name and the checksum in `.gnu_debuglink`; None if there is none."""
    section = file.get_section_by_name(".gnu_debuglink")
    if not elf.has_bytes(section):
        return None
    data: bytes = section.data()
    name = data.split(b"\0", 1)[0].decode(errors="replace")
    # The name comes from an untrusted file: it must not lead out of the directories.
    return (name, int.from_bytes(data[-4:], "little")) if name and "/" not in name else None


def _checksum(path: Path) -> int:
    checksum = 0
    with elf.opened(path) as stream:
        while data := stream.read(1 << 20):
            checksum = zlib.crc32(data, checksum)
    return checksum
