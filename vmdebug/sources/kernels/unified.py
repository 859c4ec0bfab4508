"""Unified kernel images: QEMU boots the kernel in one, with the initramfs and the parameters in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vmdebug import kimage
from vmdebug.sources import cache

_KEPT = 8
"""Number of most recently used parts to keep in the cache; QEMU reads them only when it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unified:
    """The parts of a unified kernel image, in files of their own.

    Args:
        kernel: The boot image.
        initrd: The initramfs, or None.
        parameters: The kernel parameters.
        note: What is used of it, for the user.
    """

    kernel: Path
    initrd: Path | None
    parameters: tuple[str, ...]
    note: str


def read(path: Path) -> Unified | None:
    """Return the parts of a unified kernel image; None for a file of another kind.

    Raises:
        UsageError: it is damaged.
        HostError: it cannot be read, or the cache cannot be written.
    """
    parts = kimage.unified_parts(path)
    if parts is None:
        return None
    initrd = _file(parts.initrd, "initrd") if parts.initrd else None
    has = [f"its .initrd ({len(parts.initrd) / (1 << 20):.1f} MiB)"] if parts.initrd else []
    has += [f"its .cmdline ({' '.join(parts.parameters)})"] if parts.parameters else []
    lacks = "" if parts.initrd else "; it has no .initrd, so vmdebug's is used"
    return Unified(
        kernel=_file(parts.kernel, "linux"),
        initrd=initrd,
        parameters=parts.parameters,
        note=f"{path} is a unified kernel image: QEMU gets {', '.join(['its .linux', *has])}{lacks}",
    )


def _file(data: bytes, suffix: str) -> Path:
    """Return a file of the cache with this content."""
    where = cache.directory("unified")
    file = where / f"{hashlib.sha256(data).hexdigest()[:16]}.{suffix}"
    if not cache.used(file):
        cache.write(file, data)
        cache.keep_newest(where, f"*.{suffix}", _KEPT)
    return file
