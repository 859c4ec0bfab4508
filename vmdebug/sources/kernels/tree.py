"""A kernel build tree: in-tree, or made with `make O=`.

See the kernel's top Makefile: `outputmakefile` writes a link `source` and a small Makefile into an O= tree,
and the paths in DWARF start with `srctree`.
"""

from __future__ import annotations

import re
from pathlib import Path

from vmdebug import arch, kimage
from vmdebug.errors import MismatchError, UsageError
from vmdebug.guest import Kernel
from vmdebug.sources.kernels.dev_output import why_unusable
from vmdebug.spelling import option

_INCLUDED = re.compile(r"^(?:include|MAKEARGS := -C) (/\S+?)(?:/Makefile)?$", re.MULTILINE)


def marks() -> tuple[str, ...]:
    """Return the files that tell a kernel tree, built or not, from another directory."""
    images = (row.image for row in arch.rows())
    return ("vmlinux", *images, ".config", "init/Kconfig", "include/config/kernel.release")


def is_tree(directory: Path) -> bool:
    """Whether a directory is a kernel tree; it need not be built."""
    return any((directory / mark).is_file() for mark in marks())


def kernel(directory: Path, *, force: bool = False) -> Kernel:
    """Return the kernel of a build tree, with symbols, scripts, modules and source.

    Args:
        directory: The top of the tree, absolute.
        force: Accept a boot image from another build.

    Raises:
        UsageError: it is not a kernel tree, or not built.
        MismatchError: its boot image was not made from its vmlinux.
        HostError: one of its files cannot be read.
    """
    if not is_tree(directory):
        raise UsageError(
            f"{directory} is not a kernel tree: it has none of {', '.join(marks())}",
            hint="give the directory in which `make` ran, or the one of `make O=`",
        )
    vmlinux = directory / "vmlinux"
    if not vmlinux.is_file():
        raise UsageError(f"no vmlinux in {directory}: it is not built yet", hint=_how_to_build(directory))
    symbols = kimage.read_vmlinux(vmlinux)
    image = directory / arch.by_name(symbols.arch).image
    if not image.is_file():
        raise UsageError(f"no boot image in {directory}: wanted {image}", hint=_how_to_build(directory))
    _check(image, vmlinux, directory, force=force)
    boots = kimage.read_image(image)
    return Kernel(
        image=image,
        origin=f"the tree {directory}",
        arch=symbols.arch,
        build_id=boots.build_id,
        release=boots.release,
        vmlinux=vmlinux,
        gdb_scripts=scripts(directory),
        modules=directory,
        source=paths_start(directory),
    )


def scripts(directory: Path) -> Path | None:
    """Return the directory if GDB can load its scripts; None otherwise."""
    return None if why_unusable(directory) else directory


def source(directory: Path) -> Path | None:
    """Return the source that a tree was built from: the tree itself, or what its link or Makefile names."""
    link = directory / "source"
    if link.is_dir():
        return link.resolve()
    if (directory / "init/Kconfig").is_file():
        return directory
    makefile = directory / "Makefile"
    named = _INCLUDED.search(makefile.read_text(errors="replace")) if makefile.is_file() else None
    return Path(named[1]) if named and Path(named[1]).is_dir() else None


def paths_start(directory: Path) -> Path:
    """Return the directory where relative paths in the DWARF of a tree start.

    For an in-tree build `srctree` is `.`, and for a build directory directly in its source `..`: both are
    relative to the tree. For any other tree it is absolute, and relative paths start at the source.
    """
    made_from = source(directory)
    if made_from is None or made_from in (directory.resolve(), directory.resolve().parent):
        return directory
    return made_from


def _check(image: Path, vmlinux: Path, directory: Path, *, force: bool) -> None:
    try:
        kimage.check(image, vmlinux, force=force)
    except MismatchError as error:
        # After `make vmlinux` or an interrupted make, the two differ.
        hint = f"{_how_to_build(directory)}; {option('force', True)} continues anyway"
        raise MismatchError(error.message, hint=hint, detail=error.detail) from error


def _how_to_build(directory: Path) -> str:
    build = f"make -C {directory} -j$(nproc)"
    if (directory / ".config").is_file():
        return f"run {build}"
    return f"run make -C {directory} defconfig kvm_guest.config && {build}"
