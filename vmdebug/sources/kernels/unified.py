"""Unified kernel images. QEMU gets the kernel, the initramfs and the parameters that are in the image.

Through UEFI, QEMU can start the whole image, which is an EFI program: systemd-stub(7), or another one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vmdebug import cache, kimage
from vmdebug.guest_options import UEFI
from vmdebug.spelling import option

_KEPT = 8
"""Number of most recently used parts to keep in the cache; QEMU reads them only when it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unified:
    """A unified kernel image, and its parts in files of their own.

    Args:
        file: The image.
        kernel: The boot image.
        initrd: The initramfs, or None.
        parameters: The kernel parameters.
    """

    file: Path
    kernel: Path
    initrd: Path | None
    parameters: tuple[str, ...]

    @property
    def startable(self) -> bool:
        """Whether a firmware can start the whole image: QEMU gives it no other initramfs."""
        return self.initrd is not None

    def note(self, *, started: bool, used: bool = True) -> str:
        """Return what is used of it, for the user.

        Args:
            started: Whether a firmware starts it as it is.
            used: Whether its initramfs is used; otherwise the user wants another one.
        """
        what = f"{self.file} is a unified kernel image"
        words = " ".join(self.parameters)
        if started:
            said = f"its .cmdline ({words}) and " if words else ""
            return f"{what}: UEFI starts it as it is, by its own EFI stub, with {said}vmdebug's parameters"
        has = ["its .linux"]
        if self.initrd is not None and used:
            has.append(f"its .initrd ({self.initrd.stat().st_size / (1 << 20):.1f} MiB)")
        has += [f"its .cmdline ({words})"] if words else []
        if self.initrd is not None and not used:
            return f"{what}: QEMU gets {', '.join([*has, *([f'its .cmdline ({words})'] if words else [])])}"
        whole = f"; {option('firmware', UEFI)} starts it as it is"
        lacks = "; it has no .initrd, so vmdebug's is used"
        return f"{what}: QEMU gets {', '.join(has)}{whole if self.startable else lacks}"


def read(path: Path) -> Unified | None:
    """Return the parts of a unified kernel image; None for a file of another kind.

    Raises:
        UsageError: it is damaged.
        HostError: it cannot be read, or the cache cannot be written.
    """
    parts = kimage.unified_parts(path)
    if parts is None:
        return None
    return Unified(
        file=path,
        kernel=_file(parts.kernel, "linux"),
        initrd=_file(parts.initrd, "initrd") if parts.initrd else None,
        parameters=parts.parameters,
    )


def _file(data: bytes, suffix: str) -> Path:
    """Return a file of the cache with this content."""
    where = cache.directory("unified")
    file = where / f"{hashlib.sha256(data).hexdigest()[:16]}.{suffix}"
    if not cache.used(file):
        cache.write(file, data)
        cache.keep_newest(where, f"*.{suffix}", _KEPT)
    return file
