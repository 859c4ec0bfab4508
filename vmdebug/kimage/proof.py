"""Whether a boot image and a vmlinux come from the same build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from vmdebug.errors import MismatchError
from vmdebug.kimage.formats import Image
from vmdebug.kimage.image import read_image
from vmdebug.kimage.vmlinux import Vmlinux, is_elf, read_vmlinux
from vmdebug.spelling import option

Proof = Literal["build-id", "banner", "release", "none"]
"""What proves that two files match; "none": they have nothing that can be compared."""

_COMPILER = re.compile(r"(\S+ \(\S+@\S+\)) \(.*\) (#\d.*)")


def build_id(path: Path) -> str:
    """Return the build-id of a vmlinux or a boot image, in hex; "" if it has none.

    Raises:
        UsageError: it is neither, or is damaged.
        HostError: this user may not read it.
    """
    return (read_vmlinux(path) if is_elf(path) else read_image(path)).build_id


def check(image: Path, vmlinux: Path, *, force: bool = False) -> Proof:
    """Check that a boot image and a vmlinux come from the same build, and return what proves it.

    Args:
        image: The boot image.
        vmlinux: The ELF file with symbols.
        force: Whether to return "none" for files of different builds.

    Raises:
        MismatchError: they come from different builds.
        UsageError: one of them is not a kernel file, or is damaged.
        HostError: this user may not read one of them.
    """
    boots, symbols = read_image(image), read_vmlinux(vmlinux)
    ours, theirs, proof = _comparable(boots, symbols)
    if ours == theirs:
        return proof
    if force:
        return "none"
    raise MismatchError(
        f"{image} and {vmlinux} are of different builds: {proof} {ours} and {theirs}",
        hint=f"build both with one `make`, or give this image's own vmlinux: {option('vmlinux', 'FILE')};"
        f" {option('force', True)} continues anyway",
        detail=f"{_side(image, boots)}\n{_side(vmlinux, symbols)}",
    )


def _comparable(image: Image, vmlinux: Vmlinux) -> tuple[str, str, Proof]:
    """Return the values of the most specific property that both files have, and its name."""
    if image.build_id and vmlinux.build_id:
        return image.build_id, vmlinux.build_id, "build-id"
    if not image.banner or not vmlinux.banner:
        return "", "", "none"
    whole = _COMPILER.fullmatch(vmlinux.banner)
    if whole is None:
        return image.release, vmlinux.release, "release"
    # The version in the image does not include the compiler.
    return image.banner, f"{whole[1]} {whole[2]}", "banner"


def _side(path: Path, says: Image | Vmlinux) -> str:
    match says:
        case Image(compression=packed, unread=unread):
            where = unread or f"the kernel inside, {packed}"
        case Vmlinux():
            where = "its note"
    return f"{path}\n  build-id {says.build_id or 'none'} ({where})\n  version  {says.banner or 'unknown'}"
