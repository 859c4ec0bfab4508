"""Makes a disk that boots with GRUB: boot.img, core.img, and one partition with a file system."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

SECTOR = 512
CYLINDER = 16 * 63 * SECTOR
START = 1 << 20
"""Where the partition begins; core.img is before it."""


def main(boot_file: str, core_file: str, system: str, disk: str) -> None:
    """Write the disk."""
    boot, core = bytearray(Path(boot_file).read_bytes()), bytearray(Path(core_file).read_bytes())
    core += bytes(-len(core) % SECTOR)
    size = Path(system).stat().st_size
    # As grub-bios-setup does: where core.img is; boot from this disk; and, for CHS translation, no jump.
    struct.pack_into("<Q", boot, 0x5C, 1)
    boot[0x64], boot[0x66:0x68] = 0xFF, b"\x90\x90"
    boot[446:510] = bytes(64)  # boot.img has code at the place of the partition table
    entry = (0x80, 0, 33, 0, 0x83, 254, 255, 255, START // SECTOR, size // SECTOR)
    struct.pack_into("<BBBBBBBBII", boot, 446, *entry)
    boot[510:512] = b"\x55\xaa"
    struct.pack_into("<QHH", core, 0x1F4, 2, len(core) // SECTOR - 1, 0x820)
    with Path(system).open("rb") as source, Path(disk).open("wb") as target:
        target.truncate((START + size) // CYLINDER * CYLINDER + 2 * CYLINDER)
        target.write(boot + core)
        _copy_sparse(source.fileno(), target.fileno(), size)


def _copy_sparse(source: int, target: int, size: int) -> None:
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            return  # only a hole is left
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            data = os.pread(source, min(end - at, 1 << 24), at)
            os.pwrite(target, data, START + at)
            at += len(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
