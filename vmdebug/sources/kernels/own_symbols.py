"""Symbols of a kernel for which no vmlinux is found: those that it carries itself, kallsyms."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from vmdebug import cache, kimage
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.progress import Report, Step
from vmdebug.sources.kernels import image, replacements

_WHAT = "reading the symbols that the kernel carries"
_KEPT = 4


def with_symbols(spec: LaunchSpec, *, report: Report) -> LaunchSpec:
    """Return the guest with the symbols of its kernel image, if it has no others, and the image has any.

    Raises:
        UsageError: the image is damaged.
        HostError: the image cannot be read, or the cache cannot be written.
    """
    kernel = spec.kernel
    file = _file(kernel, report) if kernel.vmlinux is None else None
    if file is None:
        return spec
    notes = tuple(_reworded(each) if each.startswith(replacements.NONE) else each for each in spec.notes)
    return msgspec.structs.replace(spec, kernel=image.with_symbols(kernel, file), notes=notes)


def _reworded(why: str) -> str:
    """Return the note that there are no symbols, for a kernel that has those of its kallsyms."""
    reason = why.removeprefix(replacements.NONE)
    return (
        f"symbols only from the kernel itself, its kallsyms: {reason}, for source lines, types and arguments"
    )


def _file(kernel: Kernel, report: Report) -> Path | None:
    where = cache.directory("kallsyms")
    digest = hashlib.sha256(kernel.image.read_bytes()).hexdigest()[:16]
    file = where / f"{digest}.vmlinux"
    if cache.used(file):
        return file
    report(Step(_WHAT, note=str(kernel.image)))
    found = kimage.own_symbols(kernel.image)
    if found is None:
        return None
    cache.write(file, found)
    cache.keep_newest(where, f"*{file.suffix}", _KEPT)
    return file
