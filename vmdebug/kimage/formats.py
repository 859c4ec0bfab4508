"""What a reader of one format of boot images offers.

A reader is a module of its own with a `FORMAT`, listed in `FORMATS` of `vmdebug.kimage.image`. The row of an
architecture names the format of its images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

START_BYTES = 4096
"""How much of a file `Format.recognises` gets, or all of a shorter one."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A boot image.

    Args:
        build_id: GNU build-id of the kernel packed inside, in hex; "" where it carries none or
            cannot be unpacked.
        banner: "RELEASE (WHO@WHERE) #N SMP DATE"; "" where it says nothing.
        arch: Row of `vmdebug.arch`.
        compression: What the kernel inside is packed with; "" where that is unknown.
        unread: Why the kernel inside was not looked at; "" when it was.
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
        name: As `image_format` in the row of an architecture has it.
        missing: What a file of another format lacks, in words for messages.
        recognises: Whether a file that begins with these bytes is of this format.
        read: Reads one. The path is for messages. Raises `BadImageError` where it is damaged.
    """

    name: str
    missing: str
    recognises: Callable[[bytes], bool]
    read: Callable[[Path, IO[bytes]], Image]
