"""The option `firmware`: UEFI firmware that boots the guest's kernel, which it gets from QEMU."""

from __future__ import annotations

from pathlib import Path

from vmdebug import process
from vmdebug.arch import Arch
from vmdebug.errors import HostError, UsageError
from vmdebug.guest_options import UEFI, GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.spelling import option


def find(row: Arch, options: GuestOptions) -> Path | None:
    """Return the file of the firmware that the user asks for; None if none is asked for.

    Raises:
        UsageError: there is no such file.
        HostError: no firmware is installed.
    """
    if options.firmware is None:
        return None
    if options.firmware == UEFI:
        return _installed(row)
    file = absolute(options.firmware)
    if not or_false(file.is_file):
        raise UsageError(
            f"{option('firmware', options.firmware)}: there is no file {file}",
            hint=f"give an image for QEMU's flash, or `{UEFI}` for the installed one",
        )
    return file


def _installed(row: Arch) -> Path:
    qemu = process.find(row.qemu, package=row.qemu_package)
    places = (*map(Path, row.uefi), qemu.resolve().parent.parent / row.uefi_beside_qemu)
    found = next((place for place in places if or_false(place.is_file)), None)
    if found is None:
        raise HostError(
            f"no UEFI firmware for {row.name} is installed: there is none of {', '.join(map(str, places))}",
            hint=f"apt install {row.uefi_package}, or give the firmware's file: {option('firmware', 'FILE')}",
        )
    return found
