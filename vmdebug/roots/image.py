"""Disk images as roots: finds the file system in one, on the whole disk or in a partition."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError
from vmdebug.guest import AUTO_INIT, Root
from vmdebug.guest_options import GuestOptions
from vmdebug.spelling import option

SECTOR = 512
_MIB = 1 << 20
_QCOW2 = b"QFI\xfb"

_MAGICS = (
    ("ext4", 0x438, b"\x53\xef"),
    ("erofs", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("squashfs", 0, b"hsqs"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
)
"""Type, offset and bytes of each superblock; see include/uapi/linux/magic.h and libblkid."""

_GPT = b"EFI PART"
_GPT_ENTRIES = 128
_GPT_ENTRY = 128
_MBR_SIGNATURE = b"\x55\xaa"

Read = Callable[[int, int], bytes]
"""Reads from a disk: offset and size in bytes. At the end of the disk it returns fewer bytes."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition.

    Args:
        number: Its number; 0 is the whole disk.
        start: Its first byte.
        file_system: Its type; "" if vmdebug finds no file system that it knows.
    """

    number: int
    start: int
    file_system: str


def resolve(path: Path, options: GuestOptions, *, deadline: Deadline) -> Root:
    """Return a disk image as a root.

    Raises:
        UsageError: it has no file system that vmdebug knows, or several; or `root_dev` has none.
        HostError: it cannot be read.
    """
    if options.root_image == "always":
        raise UsageError(
            f"{option('root_image', 'always')} packs directories, and {path} is an image already",
            hint="leave it out",
        )
    try:
        with path.open("rb") as stream:
            qcow2 = stream.read(4) == _QCOW2
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error
    read = _qcow2(path, deadline) if qcow2 else _raw(path)
    found = choose(path, partitions(read), options.root_dev)
    where = f"partition {found.number} of {path}" if found.number else str(path)
    how = "the guest writes to it" if options.keep else "the guest's writes are discarded with the VM"
    return Root(
        words=options.root or str(path),
        location=path,
        file_system=found.file_system,
        format="qcow2" if qcow2 else "raw",
        partition=found.number,
        keep=options.keep,
        init=options.init or AUTO_INIT,
        note=f"{found.file_system} on {where}; {how}",
    )


def choose(path: Path, found: list[Partition], wanted: int | None) -> Partition:
    """Return the partition with the root file system.

    Args:
        path: The image, for messages.
        found: Its partitions.
        wanted: The number of the partition that the user chose; None to find it.

    Raises:
        UsageError: there is none, or there are several.
    """
    listed = "\n".join(
        f"{'the whole disk' if each.number == 0 else f'partition {each.number}'}:"
        f" {each.file_system or 'no known file system'}"
        for each in found
    )
    fit = [each for each in found if each.file_system and wanted in (None, each.number)]
    if wanted is not None and not fit:
        raise UsageError(
            f"{option('root_dev', wanted)}: {path} has no file system there", hint=_KNOWN, detail=listed
        )
    if not fit:
        raise UsageError(f"{path} has no file system that vmdebug knows", hint=_KNOWN, detail=listed)
    if len(fit) > 1:
        raise UsageError(
            f"{path} has several file systems", hint=f"choose one: {option('root_dev', 'N')}", detail=listed
        )
    return fit[0]


def partitions(read: Read) -> list[Partition]:
    """Return the partitions of a disk; without a partition table, the whole disk."""
    starts = dict(_gpt(read) if read(SECTOR, 8) == _GPT else _mbr(read))
    whole = _file_system(read, 0)
    if whole or not starts:
        return [Partition(0, 0, whole)]
    return [Partition(number, start, _file_system(read, start)) for number, start in starts.items()]


def _gpt(read: Read) -> Iterator[tuple[int, int]]:
    """Yield number and first byte of each partition; see the UEFI specification, 5.3.3."""
    header = read(SECTOR, 92)
    first = int.from_bytes(header[72:80], "little") * SECTOR
    entries = read(first, _GPT_ENTRIES * _GPT_ENTRY)
    for number in range(1, _GPT_ENTRIES + 1):
        entry = entries[(number - 1) * _GPT_ENTRY : number * _GPT_ENTRY]
        if any(entry[:16]):
            yield number, int.from_bytes(entry[32:40], "little") * SECTOR


def _mbr(read: Read) -> Iterator[tuple[int, int]]:
    """Yield number and first byte of each primary partition."""
    sector = read(0, SECTOR)
    if sector[510:512] != _MBR_SIGNATURE:
        return
    for number in range(1, 5):
        entry = sector[446 + 16 * (number - 1) :][:16]
        if entry[4]:
            yield number, int.from_bytes(entry[8:12], "little") * SECTOR


def _file_system(read: Read, start: int) -> str:
    head = read(start, 0x10040 + 8)
    for name, offset, magic in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return name
    return ""


def _raw(path: Path) -> Read:
    def read(offset: int, size: int) -> bytes:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    return read


def _qcow2(path: Path, deadline: Deadline) -> Read:
    """Return a function that reads what a guest sees of a qcow2 image, 1 MiB at a time."""
    program = process.find("qemu-img", package="qemu-utils")
    about = process.run((program, "info", "-U", "--output=json", "-f", "qcow2", path), deadline=deadline)
    size = json.loads(about.stdout)["virtual-size"]
    cached: dict[int, bytes] = {}

    def block(number: int) -> bytes:
        start = number * _MIB
        if number not in cached:
            argv = convert_argv(program, path, start, max(0, min(_MIB, size - start)))
            with tempfile.NamedTemporaryFile() as file:
                if start < size:
                    process.run((*argv, file.name), deadline=deadline)
                cached[number] = Path(file.name).read_bytes()
        return cached[number]

    def read(offset: int, size: int) -> bytes:
        numbers = range(offset // _MIB, (offset + size - 1) // _MIB + 1)
        data = b"".join(block(number) for number in numbers)
        return data[offset % _MIB :][:size]

    return read


def convert_argv(program: Path, path: Path, start: int, size: int) -> tuple[str, ...]:
    """Return the command that writes a part of a qcow2 image to a file, which is its next argument.

    `qemu-img dd` does not work for this: its `count=` includes the blocks that `skip=` leaves out, at least
    up to QEMU 7.2.
    """
    name = str(path).replace(",", ",,")
    part = f"driver=raw,offset={start},size={size}"
    image = f"{part},file.driver=qcow2,file.file.driver=file,file.file.filename={name}"
    return (str(program), "convert", "-U", "--image-opts", "-O", "raw", image)


_KNOWN = f"it knows {', '.join(name for name, _, _ in _MAGICS)}, on the whole disk or in a partition"
