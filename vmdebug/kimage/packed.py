"""Decompresses the kernel in a boot image as far as it is read.

scripts/Makefile.lib of the kernel shows how each compressor is called, and what follows the compressed data.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
from collections.abc import Callable, Iterator
from typing import IO

LARGEST_PACKED = 256 << 20
"""The most compressed bytes that a boot image may have."""

_LARGEST_UNPACKED = 512 << 20
_CHUNK = 1 << 20

_LZ4_BLOCK = 8 << 20
"""Decompressed size of each block of the legacy format, except the last."""


class BadImageError(ValueError):
    """The file is not a boot image, or is damaged; the text says how, without the file's name."""


class UnpackError(ValueError):
    """This machine cannot decompress the kernel; the image may be valid."""


class Unpacked(io.RawIOBase):
    """A seekable file over a decompressor. It decompresses as far as it is read, and keeps the result.

    Reading raises BadImageError if the compressed data is damaged.

    Args:
        compression: The name of the compression.
        chunks: Yields the decompressed bytes in order.
    """

    def __init__(self, compression: str, chunks: Iterator[bytes]) -> None:
        self.compression = compression
        self._chunks = chunks
        self._have = bytearray()
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position. SEEK_END is relative to the largest allowed size: the real size is unknown."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: _LARGEST_UNPACKED}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, fewer only at the end.

        Raises:
            BadImageError: the compressed data is damaged, or is larger than any kernel.
        """
        end = _LARGEST_UNPACKED if size < 0 else self._at + size
        self._fill(end)
        data = bytes(self._have[self._at : end])
        self._at += len(data)
        return data

    def _fill(self, end: int) -> None:
        while len(self._have) < end:
            try:
                chunk = next(self._chunks, None)
            except Exception as error:  # each decompressor raises its own exceptions
                raise BadImageError(
                    f"a boot image whose {self.compression} payload is damaged: {error}"
                ) from error
            if chunk is None:
                return
            self._have += chunk
            if len(self._have) > _LARGEST_UNPACKED:
                raise BadImageError(
                    f"a boot image whose payload unpacks to over {_LARGEST_UNPACKED >> 20} MiB"
                )


def unpack(packed: bytes) -> Unpacked:
    """Return the kernel in compressed data.

    Raises:
        UnpackError: there is no decompressor for it here.
    """
    for magic, name, chunks in _FORMATS:
        if packed.startswith(magic):
            if chunks is None:
                raise UnpackError(f"{name} cannot be unpacked here")
            return Unpacked(name, chunks(packed))
    raise UnpackError(f"compression unknown (it begins with {packed[:4].hex(' ')})")


def _read_on(reader: io.BufferedIOBase | IO[bytes]) -> Iterator[bytes]:
    while data := reader.read(_CHUNK):
        yield data


def _gzip(packed: bytes) -> Iterator[bytes]:
    return _read_on(gzip.open(io.BytesIO(packed)))


def _lzma(packed: bytes) -> Iterator[bytes]:
    return _to_its_end(lzma.LZMADecompressor(), packed)


def _bzip2(packed: bytes) -> Iterator[bytes]:
    return _to_its_end(bz2.BZ2Decompressor(), packed)


def _to_its_end(decompressor: lzma.LZMADecompressor | bz2.BZ2Decompressor, packed: bytes) -> Iterator[bytes]:
    # The decompressed size follows the data. lzma.open and bz2.open would read it as another stream.
    while not decompressor.eof:
        chunk = decompressor.decompress(packed, max_length=_CHUNK)
        packed = b""
        if not chunk and not decompressor.eof and decompressor.needs_input:
            raise EOFError("it is cut off")
        yield chunk


def _zstd(packed: bytes) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415 - needed by few, and slow to import

    # The size that follows the frame is in the way of `stream_reader`: it must not read beyond the frame.
    left = int.from_bytes(packed[-4:], "little")
    reader = zstandard.ZstdDecompressor().stream_reader(packed)
    while left and (data := reader.read(min(left, _CHUNK))):
        left -= len(data)
        yield data


def _lz4(packed: bytes) -> Iterator[bytes]:
    """Decompress the legacy frame format of `lz4 -l`: a magic number, then blocks after their lengths."""
    import lz4.block  # noqa: PLC0415 - needed by few

    at = 4
    # The last four bytes are the decompressed size; see size_append in scripts/Makefile.lib.
    while at + 8 <= len(packed):
        (length,) = struct.unpack_from("<I", packed, at)
        at += 4
        if at + length > len(packed):
            raise ValueError(f"a block of {length} bytes at {at}")
        yield lz4.block.decompress(packed[at : at + length], uncompressed_size=_LZ4_BLOCK)
        at += length


def _plain(packed: bytes) -> Iterator[bytes]:
    yield packed


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], Iterator[bytes]] | None], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _lzma),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"BZh", "bzip2", _bzip2),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    # There are no binary packages of Python's LZO bindings. For this rare format, compare versions.
    (b"\x89LZO", "lzo", None),
    (b"\x7fELF", "uncompressed", _plain),
)
