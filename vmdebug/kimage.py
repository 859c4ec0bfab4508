"""What a kernel's files say about themselves, and whether two of them are of one build.

A vmlinux and the kernel packed inside a boot image carry the same GNU build-id note,
for both come from one link (see `LDFLAGS_vmlinux` in the kernel's Makefile). Where one
has no such note, the version strings must do: linux_banner of init/version-timestamp.c in the
vmlinux, kernel_version of arch/x86/boot/version.c in the image.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

import msgspec

from vmdebug import arch, bzimage
from vmdebug.errors import HostError, MismatchError, UsageError
from vmdebug.filecache import cached
from vmdebug.spelling import option

Proof = Literal["build-id", "banner", "release", "none"]
"""By what two files were found to belong together; "none": neither says anything to compare."""

_BANNER = re.compile(rb"Linux version (\d[^\0\n]{1,500})\n\0")
_NUMBER = re.compile(rb" #\d")
_COMPILER = re.compile(r"(\S+ \(\S+@\S+\)) \(.*\) (#\d.*)")

# A damaged or hostile file may claim any number of these; no kernel has as many.
_MOST_NOTES = 256
_MOST_SECTIONS = 4096
_LARGEST_NOTES = 64 << 10
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


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A boot image.

    Args:
        build_id: GNU build-id of the kernel packed inside, in hex; "" where it carries none or
            cannot be unpacked.
        banner: "RELEASE (WHO@WHERE) #N SMP DATE"; "" where it says nothing.
        compression: What the kernel inside is packed with; "" where that is unknown.
        unread: Why the kernel inside was not looked at; "" when it was.
    """

    build_id: str
    banner: str
    compression: str = ""
    unread: str = ""

    @property
    def release(self) -> str:
        """`uname -r`, or ""."""
        return self.banner.partition(" ")[0]


def is_image(path: Path) -> bool:
    """Whether a file has the x86 boot image's header.

    Raises:
        UsageError: it is no regular file.
        HostError: it may not be read.
    """
    with _opened(path) as stream:
        return bzimage.is_image(stream.read(bzimage.SETUP_BYTES))


def is_elf(path: Path) -> bool:
    """Whether a file is an ELF file.

    Raises:
        UsageError: it is no regular file.
        HostError: it may not be read.
    """
    with _opened(path) as stream:
        return stream.read(4) == b"\x7fELF"


def build_id(path: Path) -> str:
    """Return the build-id of a vmlinux or a boot image, in hex; "" where it carries none.

    Raises:
        UsageError: it is neither, or damaged.
        HostError: it may not be read.
    """
    return (read_vmlinux(path) if is_elf(path) else read_image(path)).build_id


def read_vmlinux(path: Path) -> Vmlinux:
    """Return what a vmlinux says; from the cache while the file stays the same.

    Raises:
        UsageError: it is no linked kernel, or one for a machine that vmdebug does not know.
        HostError: it may not be read.
    """
    with _opened(path) as stream:
        return cached(path, "vmlinux", Vmlinux, lambda: _vmlinux(path, stream))


def read_image(path: Path) -> Image:
    """Return what a boot image says; from the cache while the file stays the same.

    Raises:
        UsageError: it is no boot image, or a damaged one.
        HostError: it may not be read.
    """
    with _opened(path) as stream:
        return cached(path, "image", Image, lambda: _image(path, stream))


def dwarf_version(vmlinux: Path) -> int:
    """Return the version of the DWARF in a vmlinux, by its first unit; 0 where there is none.

    Raises:
        UsageError: it is no ELF file, or a damaged one.
        HostError: it may not be read.
    """
    with _opened(vmlinux) as stream:
        elf = _elf(vmlinux, stream)
        section = elf.get_section_by_name(".debug_info")
        if not _has_bytes(section):
            return 0
        stream.seek(section["sh_offset"])
        start = stream.read(min(section["sh_size"], _UNIT_SURELY))
    if section["sh_flags"] & _SHF_COMPRESSED:
        start = _unpacked(start)
    # A unit begins with its length: of 64-bit DWARF by 0xffffffff and 8 bytes more; see DWARF 5, 7.5.1.
    at = 12 if start.startswith(b"\xff\xff\xff\xff") else 4
    return int.from_bytes(start[at : at + 2], "little")


def check(image: Path, vmlinux: Path, *, force: bool = False) -> Proof:
    """Make sure that a boot image and a vmlinux are of one build; return what proves it.

    Args:
        image: The boot image.
        vmlinux: The ELF file with symbols.
        force: Take files of different builds for such of which nothing is known.

    Raises:
        MismatchError: they are not.
        UsageError: one of them is not what it should be.
        HostError: one of them may not be read.
    """
    boots, symbols = read_image(image), read_vmlinux(vmlinux)
    ours, theirs, proof = _comparable(boots, symbols)
    if ours == theirs:
        return proof
    if force:
        return "none"
    raise MismatchError(
        f"{image} and {vmlinux} are not of one build: {proof} {ours} against {theirs}",
        hint=f"build both with one `make`, or give this image's own vmlinux: {option('vmlinux', 'FILE')};"
        f" {option('force', True)} continues anyway",
        detail=f"{_side(image, boots)}\n{_side(vmlinux, symbols)}",
    )


def _comparable(image: Image, vmlinux: Vmlinux) -> tuple[str, str, Proof]:
    """Return what both sides say about the most telling thing that both know."""
    if image.build_id and vmlinux.build_id:
        return image.build_id, vmlinux.build_id, "build-id"
    if not image.banner or not vmlinux.banner:
        return "", "", "none"
    whole = _COMPILER.fullmatch(vmlinux.banner)
    if whole is None:
        return image.release, vmlinux.release, "release"
    # The image does not name its compiler.
    return image.banner, f"{whole[1]} {whole[2]}", "banner"


def _side(path: Path, says: Image | Vmlinux) -> str:
    match says:
        case Image(compression=packed, unread=unread):
            where = unread or f"the kernel inside, {packed}"
        case Vmlinux():
            where = "its note"
    return f"{path}\n  build-id {says.build_id or 'none'} ({where})\n  version  {says.banner or 'unknown'}"


def _vmlinux(path: Path, stream: IO[bytes]) -> Vmlinux:
    if stream.read(4) != b"\x7fELF":
        raise UsageError(f"{path} is no vmlinux: not an ELF file", hint=_WANTED_VMLINUX)
    elf = _elf(path, stream)
    try:
        machine, kind = elf["e_machine"], elf["e_type"]
        sections = {
            section.name: section for section in itertools.islice(elf.iter_sections(), _MOST_SECTIONS)
        }
        rodata = _bytes_of(stream, sections.get(".rodata"))
        found = Vmlinux(
            build_id=_build_id(elf),
            banner=_banner(rodata),
            has_dwarf=any(_has_bytes(sections.get(name)) for name in (".debug_info", ".zdebug_info")),
            arch=_arch(path, machine),
        )
    except UsageError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
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


def _image(path: Path, stream: IO[bytes]) -> Image:
    try:
        header = bzimage.read_header(stream)
        inside = bzimage.unpack(stream, header)
        elf = _elf(path, inside)
        _arch(path, elf["e_machine"])
        return Image(build_id=_build_id(elf), banner=header.version, compression=inside.compression)
    except bzimage.UnpackError as error:
        return Image(build_id="", banner=header.version, unread=str(error))
    except bzimage.BadImageError as error:
        raise UsageError(f"{path} is {error}", hint=_WANTED_IMAGE) from error
    except UsageError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


_WANTED_IMAGE = "give a bzImage, as `make` leaves it in arch/x86/boot, or a distribution's vmlinuz"


def _elf(path: Path, stream: IO[bytes] | bzimage.Unpacked) -> Any:
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - slow to import, and mostly the cache answers

    try:
        return ELFFile(cast("IO[bytes]", stream))
    except bzimage.BadImageError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UsageError:
    """Return the error for what pyelftools meets in a file that breaks the rules: any exception at all."""
    return UsageError(
        f"{path} is damaged: {str(error) or type(error).__name__}",
        hint="build or copy it again; was it cut off?",
    )


def _arch(path: Path, machine: str) -> str:
    try:
        return arch.by_elf_machine(machine).name
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error


def _build_id(elf: Any) -> str:
    """Return the GNU build-id; Xen's notes, which stand before it in a kernel, are passed over."""
    tables = itertools.chain(elf.iter_segments(type="PT_NOTE"), elf.iter_sections(type="SHT_NOTE"))
    notes = itertools.chain.from_iterable(table.iter_notes() for table in tables if _believable(table))
    for note in itertools.islice(notes, _MOST_NOTES):
        if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_BUILD_ID":
            return str(note["n_desc"])
    return ""


def _believable(table: Any) -> bool:
    header = table.header
    return int(header["p_filesz"] if "p_filesz" in header else header["sh_size"]) <= _LARGEST_NOTES


def _has_bytes(section: Any) -> bool:
    # `objcopy --only-keep-debug` leaves the others as headers without bytes.
    return section is not None and section["sh_type"] != "SHT_NOBITS" and section["sh_size"] > 0


def _bytes_of(stream: IO[bytes], section: Any) -> bytes:
    if not _has_bytes(section):
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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        # Looked at first: opening a pipe would wait for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is no regular file", hint="give the file itself")
        stream = path.open("rb")
    except PermissionError as error:
        raise HostError(
            f"{path} may not be read", hint="copy it to where you can read it, or run as its owner"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path} cannot be read: {reason}", hint="is the path right?") from error
    with stream:
        yield stream
