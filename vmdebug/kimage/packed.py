"""A kernel packed inside a boot image, unpacked as far as it is read.

How each compressor is called, and what it leaves behind its data, is in scripts/Makefile.lib of the kernel.
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
"""The most bytes that a boot image may claim to have packed."""

_LARGEST_UNPACKED = 512 << 20
_CHUNK = 1 << 20

_LZ4_BLOCK = 8 << 20
"""Every block of the legacy format but the last unpacks to this many bytes."""


class BadImageError(ValueError):
    """The file is not a boot image, or is damaged; the text says how, without the file's name."""


class UnpackError(ValueError):
    """The packed kernel cannot be unpacked, though the image may be good."""


class Unpacked(io.RawIOBase):
    """A seekable file over a decompressor; it unpacks up to where it is read, and keeps that.

    Reading ends with BadImageError where the packed data is damaged.

    Args:
        compression: What it was packed with.
        chunks: Gives the unpacked bytes in order.
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
        """Go to `offset`. The end is unknown before all is unpacked: it counts as the largest one allowed."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: _LARGEST_UNPACKED}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, fewer only at the end.

        Raises:
            BadImageError: the packed data is damaged, or unpacks to more than is believable.
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
            except Exception as error:  # each decompressor has errors of its own
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
    """Return the kernel in packed data.

    Raises:
        UnpackError: its compression is not one that can be undone here.
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
    # lzma.open and bz2.open take what follows the end, the unpacked size, for the start of more.
    while not decompressor.eof:
        chunk = decompressor.decompress(packed, max_length=_CHUNK)
        packed = b""
        if not chunk and not decompressor.eof and decompressor.needs_input:
            raise EOFError("it ends too soon")
        yield chunk


def _zstd(packed: bytes) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415 - needed by few, and slow to import

    # Only `size` bytes after the frame follow, which `stream_reader` leaves alone.
    yield from _read_on(zstandard.ZstdDecompressor().stream_reader(packed))


def _lz4(packed: bytes) -> Iterator[bytes]:
    """Unpack the legacy frame format, which `lz4 -l` writes: magic, then blocks, each after its length."""
    import lz4.block  # noqa: PLC0415 - needed by few

    at = 4
    # Four bytes with the unpacked size are the payload's end; see size_append in scripts/Makefile.lib.
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
    # Python's bindings to it must be compiled on the user's machine: for this rare one versions must do.
    (b"\x89LZO", "lzo", None),
    (b"\x7fELF", "uncompressed", _plain),
)
