"""Reads boot images of all known formats."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from vmdebug import arch
from vmdebug.errors import UsageError
from vmdebug.filecache import cached
from vmdebug.kimage import bzimage, elf
from vmdebug.kimage.formats import START_BYTES, Format, Image
from vmdebug.kimage.packed import BadImageError

FORMATS = {each.name: each for each in (bzimage.FORMAT,)}
"""The formats that can be read, by name."""


def is_image(path: Path) -> bool:
    """Whether a file is a boot image of a known format.

    Raises:
        UsageError: it is not a regular file.
        HostError: this user may not read it.
    """
    with elf.opened(path) as stream:
        return _format(stream) is not None


def unknown_format() -> str:
    """Return what is missing in a file that is not a boot image, for messages."""
    return "; ".join(each.missing for each in FORMATS.values())


def read_image(path: Path) -> Image:
    """Return a boot image's identity; from the cache while the file is unchanged.

    Raises:
        UsageError: it is not a boot image, is damaged, or is for an architecture without a row.
        HostError: this user may not read it.
    """
    with elf.opened(path) as stream:
        return cached(path, "image-2", Image, lambda: _image(path, stream))


def _format(stream: IO[bytes]) -> Format | None:
    start = stream.read(START_BYTES)
    stream.seek(0)
    return next((each for each in FORMATS.values() if each.recognises(start)), None)


def _image(path: Path, stream: IO[bytes]) -> Image:
    found = _format(stream)
    if found is None:
        raise UsageError(f"{path} is not a boot image: {unknown_format()}", hint=_wanted())
    try:
        return found.read(path, stream)
    except BadImageError as error:
        raise UsageError(f"{path} is {error}", hint=_wanted()) from error
    except UsageError:
        raise
    except Exception as error:
        raise elf.damaged(path, error) from error


def _wanted() -> str:
    images = ", ".join(row.image for row in arch.rows())
    return f"give the boot image that `make` builds, {images}, or a distribution's vmlinuz"
