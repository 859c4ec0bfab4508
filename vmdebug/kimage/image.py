"""Reads boot images of all known formats."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from vmdebug import arch
from vmdebug.errors import UsageError
from vmdebug.filecache import cached
from vmdebug.kimage import bzimage, elf, uki
from vmdebug.kimage.formats import START_BYTES, Format, Image
from vmdebug.kimage.packed import BadImageError, UnpackError

if TYPE_CHECKING:
    from vmdebug.kimage.kallsyms import Symbol

FORMATS = {each.name: each for each in (bzimage.FORMAT,)}
"""The formats that can be read, by name."""


def is_image(path: Path) -> bool:
    """Whether a file is a boot image of a known format.

    Raises:
        UsageError: it is not a regular file.
        HostError: this user may not read it.
    """
    with elf.opened(path) as stream:
        return bool(uki.sections(stream.read(START_BYTES))) or _format(stream) is not None


def unknown_format() -> str:
    """Return what is missing in a file that is not a boot image, for messages."""
    return "; ".join([*(each.missing for each in FORMATS.values()), uki.MISSING])


def read_image(path: Path) -> Image:
    """Return a boot image's identity; from the cache while the file is unchanged.

    Raises:
        UsageError: it is not a boot image, is damaged, or is for an architecture without a row.
        HostError: this user may not read it.
    """
    with elf.opened(path) as stream:
        return cached(path, "image-2", Image, lambda: _image(path, stream))


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a unified kernel image.

    Args:
        kernel: The boot image.
        initrd: The initramfs; b"" if there is none.
        parameters: The kernel parameters.
    """

    kernel: bytes
    initrd: bytes
    parameters: tuple[str, ...]


def unified_parts(path: Path) -> Parts | None:
    """Return the parts of a unified kernel image; None for a file of another kind.

    Raises:
        UsageError: it is damaged.
        HostError: this user may not read it.
    """
    with elf.opened(path) as stream:
        sections = uki.sections(stream.read(START_BYTES))
        if not sections:
            return None
        try:
            kernel, initrd, parameters = (
                uki.content(stream, sections[name]) if name in sections else b""
                for name in (uki.KERNEL, uki.INITRD, uki.PARAMETERS)
            )
        except BadImageError as error:
            raise UsageError(f"{path} is {error}", hint=_wanted()) from error
    words = parameters.split(b"\0")[0].decode(errors="replace").split()
    return Parts(kernel, initrd, tuple(words))


class _Count(msgspec.Struct, frozen=True):
    count: int


@dataclass(frozen=True, slots=True)
class Carried:
    """The ELF file in a boot image, and the symbols that it carries."""

    file: bytes
    symbols: tuple[Symbol, ...]


def own_symbols(path: Path) -> bytes | None:
    """Return the kernel in a boot image as a vmlinux with the symbols that it carries, those of kallsyms.

    Return None if it has none, or cannot be decompressed here.

    Raises:
        UsageError: it is damaged.
        HostError: this user may not read it.
    """
    from vmdebug.kimage import symtab  # noqa: PLC0415 - rarely needed

    carried = Carried(b"", ())

    def count() -> _Count:
        nonlocal carried
        carried = _carried(path)
        return _Count(len(carried.symbols))

    # A kernel without kallsyms is not searched again.
    if not cached(path, "kallsyms", _Count, count).count:
        return None
    carried = carried if carried.symbols else _carried(path)
    try:
        return symtab.with_symbols(carried.file, carried.symbols)
    except (struct.error, IndexError) as error:
        raise elf.damaged(path, error) from error


def _carried(path: Path) -> Carried:
    from vmdebug.kimage import kallsyms  # noqa: PLC0415 - rarely needed

    with elf.opened(path) as stream, _damage(path):
        inside = _inside(stream)
        found = _format(inside)
        try:
            file = found.unpack(inside).read() if found is not None else b""
        except UnpackError:
            return Carried(b"", ())
        parsed = elf.parse(path, io.BytesIO(file))
        rodata, text = (parsed.get_section_by_name(name) for name in (".rodata", ".text"))
        if rodata is None or text is None:
            return Carried(file, ())
        symbols = kallsyms.symbols(rodata.data(), rodata["sh_addr"], text["sh_addr"])
        return Carried(file, tuple(symbols))


def _format(stream: IO[bytes]) -> Format | None:
    stream.seek(0)
    start = stream.read(START_BYTES)
    stream.seek(0)
    return next((each for each in FORMATS.values() if each.recognises(start)), None)


def _image(path: Path, stream: IO[bytes]) -> Image:
    with _damage(path):
        inside = _inside(stream)
        found = _format(inside)
        if found is not None:
            return found.read(path, inside)
    raise UsageError(f"{path} is not a boot image: {unknown_format()}", hint=_wanted())


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what a damaged file causes in the block into a `UsageError` that names the file."""
    try:
        yield
    except BadImageError as error:
        raise UsageError(f"{path} is {error}", hint=_wanted()) from error
    except UsageError:
        raise
    except Exception as error:
        raise elf.damaged(path, error) from error


def _inside(stream: IO[bytes]) -> IO[bytes]:
    """Return the boot image in a unified kernel image; any other file as it is."""
    sections = uki.sections(stream.read(START_BYTES))
    stream.seek(0)
    return io.BytesIO(uki.content(stream, sections[uki.KERNEL])) if sections else stream


def _wanted() -> str:
    images = ", ".join(row.image for row in arch.rows())
    return f"give the boot image that `make` builds, {images}, or a distribution's vmlinuz"
