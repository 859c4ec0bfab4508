"""Reads the files of kernel modules, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

from vmdebug.errors import UsageError
from vmdebug.kimage import elf

_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".bz2": bz2.decompress,
}


def is_packed(path: Path) -> bool:
    """Return whether the ending of its name says that a module is compressed."""
    return path.suffix in (*_UNPACK, ".zst")


def read(path: Path) -> bytes:
    """Return the ELF file of a module, decompressed according to the ending of its name.

    Raises:
        OSError: it cannot be read.
        ValueError: it cannot be decompressed.
    """
    packed = path.read_bytes()
    unpack = _zstd if path.suffix == ".zst" else _UNPACK.get(path.suffix, bytes)
    try:
        return unpack(packed)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}") from error


def build_id(path: Path) -> str:
    """Return the GNU build-id of a module; "" if it has none, or the file is damaged."""
    try:
        return elf.build_id(elf.parse(path, io.BytesIO(read(path))))
    except (OSError, ValueError, UsageError):
        return ""


def _zstd(packed: bytes) -> bytes:
    import zstandard  # noqa: PLC0415 - few modules use it

    try:
        return zstandard.ZstdDecompressor().stream_reader(packed).read()
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
