"""The x86 boot image: its setup header, and the kernel packed inside.

Rests on Documentation/arch/x86/boot.rst ("Details of Header Fields") and, for how
each compressor is called, on scripts/Makefile.lib of the kernel.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

SETUP_BYTES = 0x250
"""How much of the file the setup header needs, up to the end of `payload_length`."""

_BOOT_FLAG = (0x1FE, b"\x55\xaa")
_MAGIC = (0x202, b"HdrS")
_PAYLOAD_SINCE = 0x0208
_VERSION_LENGTH = 512

_LARGEST_PACKED = 256 << 20
_LARGEST_UNPACKED = 512 << 20
_CHUNK = 1 << 20

_LZ4_BLOCK = 8 << 20
"""Every block of the legacy format but the last unpacks to this many bytes."""


class BadImageError(ValueError):
    """The file is no boot image, or a damaged one; the text says how, without its name."""


class UnpackError(ValueError):
    """The payload cannot be unpacked, though the image may be a good one."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the setup header says.

    Args:
        version: The kernel about itself: "RELEASE (WHO@WHERE) #N SMP DATE"; "" where it says nothing.
        protocol: Boot protocol, 0x020f is 2.15.
        payload: Offset and length of the packed kernel in the file; None before protocol 2.08.
    """

    version: str
    protocol: int
    payload: tuple[int, int] | None


def is_image(start: bytes) -> bool:
    """Whether a file that begins with `start` (at least `SETUP_BYTES` of it) has an x86 setup header."""
    return all(start[at : at + len(magic)] == magic for at, magic in (_BOOT_FLAG, _MAGIC))


def read_header(stream: IO[bytes]) -> Header:
    """Return what the setup header of an image says.

    Raises:
        BadImageError: there is none, or it points outside the file.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(SETUP_BYTES)
    if not is_image(start):
        raise BadImageError("no x86 boot image: 'HdrS' is not at 0x202")
    if len(start) < SETUP_BYTES:
        raise BadImageError(f"a boot image cut off after {size} bytes, inside its setup header")
    (protocol,) = struct.unpack_from("<H", start, 0x206)
    payload = _payload(start, size) if protocol >= _PAYLOAD_SINCE else None
    return Header(version=_version(stream, start), protocol=protocol, payload=payload)


def _payload(start: bytes, size: int) -> tuple[int, int]:
    # "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
    setup = (start[0x1F1] or 4) + 1
    offset, length = struct.unpack_from("<II", start, 0x248)
    begin = setup * 512 + offset
    if begin + length > size:
        raise BadImageError(
            f"a boot image cut off after {size} bytes: its payload ends at byte {begin + length}"
        )
    return begin, length


def _version(stream: IO[bytes], start: bytes) -> str:
    (pointer,) = struct.unpack_from("<H", start, 0x20E)
    if pointer == 0:
        return ""
    stream.seek(pointer + 0x200)
    text = stream.read(_VERSION_LENGTH).split(b"\0")[0].decode("ascii", errors="replace")
    return text if text.isprintable() else ""


def unpack(stream: IO[bytes], header: Header) -> Unpacked:
    """Return the kernel inside an image: an ELF file that is unpacked as far as it is read.

    Raises:
        UnpackError: its compression is not one that can be undone here.
        BadImageError: the payload is too large to be true.
    """
    if header.payload is None:
        raise UnpackError(
            f"boot protocol {header.protocol >> 8}.{header.protocol & 255:02} does not say where"
        )
    offset, length = header.payload
    if length > _LARGEST_PACKED:
        raise BadImageError(f"a boot image whose payload claims {length} bytes")
    stream.seek(offset)
    packed = stream.read(length)
    for magic, name, chunks in _FORMATS:
        if packed.startswith(magic):
            if chunks is None:
                raise UnpackError(f"{name} cannot be unpacked here")
            return Unpacked(name, chunks(packed))
    raise UnpackError(f"compression unknown (it begins with {packed[:4].hex(' ')})")


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
