"""Reads the bzImage of x86: its setup header, and the compressed kernel in it.

See Documentation/arch/x86/boot.rst, "Details of Header Fields".
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vmdebug import arch
from vmdebug.kimage import elf
from vmdebug.kimage.formats import Format, Image
from vmdebug.kimage.packed import LARGEST_PACKED, BadImageError, Unpacked, UnpackError, unpack

_SETUP_BYTES = 0x250
"""Number of bytes up to the end of `payload_length`, the last field that is read of the setup header."""

_BOOT_FLAG = (0x1FE, b"\x55\xaa")
_MAGIC = (0x202, b"HdrS")
_NAME = "bzImage"
_MISSING = "'HdrS' is not at 0x202"
_PAYLOAD_SINCE = 0x0208
_VERSION_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Header:
    """The setup header.

    Args:
        version: The kernel's version: "RELEASE (WHO@WHERE) #N SMP DATE"; "" if the header has none.
        protocol: Boot protocol, 0x020f is 2.15.
        payload: Offset and length of the compressed kernel in the file; None before protocol 2.08.
    """

    version: str
    protocol: int
    payload: tuple[int, int] | None


def recognises(start: bytes) -> bool:
    """Whether a file that begins with these bytes has an x86 setup header."""
    return all(start[at : at + len(magic)] == magic for at, magic in (_BOOT_FLAG, _MAGIC))


def read_header(stream: IO[bytes]) -> Header:
    """Return the setup header of an image.

    Raises:
        BadImageError: there is none, or it points outside the file.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(_SETUP_BYTES)
    if not recognises(start):
        raise BadImageError(f"not a boot image: {_MISSING}")
    if len(start) < _SETUP_BYTES:
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


def kernel(stream: IO[bytes], header: Header) -> Unpacked:
    """Return the kernel in an image: an ELF file that is decompressed as far as it is read.

    Raises:
        UnpackError: there is no decompressor for it here.
        BadImageError: the payload claims more bytes than any kernel has.
    """
    if header.payload is None:
        raise UnpackError(
            f"boot protocol {header.protocol >> 8}.{header.protocol & 255:02} does not give its offset"
        )
    offset, length = header.payload
    if length > LARGEST_PACKED:
        raise BadImageError(f"a boot image whose payload claims {length} bytes")
    stream.seek(offset)
    return unpack(stream.read(length))


def _read(path: Path, stream: IO[bytes]) -> Image:
    header = read_header(stream)
    try:
        inside = kernel(stream, header)
    except UnpackError as error:
        machine = arch.by_image_format(_NAME).name
        return Image(build_id="", banner=header.version, arch=machine, unread=str(error))
    file = elf.parse(path, inside)
    return Image(
        build_id=elf.build_id(file),
        banner=header.version,
        arch=elf.arch_of(path, file["e_machine"]),
        compression=inside.compression,
    )


def _unpack(stream: IO[bytes]) -> Unpacked:
    return kernel(stream, read_header(stream))


FORMAT = Format(name=_NAME, missing=_MISSING, recognises=recognises, read=_read, unpack=_unpack)
