"""The interface of a reader for one format of boot images.

A reader is a module of its own with a `FORMAT`, listed in `FORMATS` of `vmdebug.kimage.image`. The row of an
architecture names the format of its images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from vmdebug.kimage.packed import Unpacked

START_BYTES = 4096
"""Number of bytes at the start of a file that `Format.recognises` gets; of a shorter file, all bytes."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A boot image.

    Args:
        build_id: GNU build-id of the kernel in it, in hex; "" if it has none or cannot be decompressed.
        banner: "RELEASE (WHO@WHERE) #N SMP DATE"; "" if the image has no version.
        arch: The row of `vmdebug.arch`.
        compression: The kernel's compression; "" if unknown.
        unread: Why the kernel in it was not read; "" if it was.
    """

    build_id: str
    banner: str
    arch: str
    compression: str = ""
    unread: str = ""

    @property
    def release(self) -> str:
        """`uname -r`, or ""."""
        return self.banner.partition(" ")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of boot images.

    Args:
        name: The name, as in `image_format` of an architecture's row.
        missing: What is missing in a file of another format, for messages.
        recognises: Whether a file that begins with these bytes is of this format.
        read: Reads one. The path is for messages. Raises `BadImageError` if it is damaged.
        unpack: Returns the kernel in one, an ELF file. Raises `BadImageError` if it is damaged, and
            `UnpackError` if there is no decompressor for it here.
    """

    name: str
    missing: str
    recognises: Callable[[bytes], bool]
    read: Callable[[Path, IO[bytes]], Image]
    unpack: Callable[[IO[bytes]], Unpacked]
