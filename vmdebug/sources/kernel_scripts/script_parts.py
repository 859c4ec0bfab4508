"""Finds the parts of a kernel's GDB scripts, and checks that they belong to that kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vmdebug import kimage
from vmdebug.errors import MismatchError, UsageError
from vmdebug.guest import Kernel
from vmdebug.paths import or_false
from vmdebug.sources import kernel_source
from vmdebug.sources.configuration import dotconfig
from vmdebug.sources.kernels import dev_output, tree

LOADER = "vmlinux-gdb.py"

_SCRIPTS = "scripts/gdb"
_PREPARED = ("include/config/auto.conf", "include/generated/autoconf.h", "Makefile")
"""The files in a build tree that external modules need: see `prepare` in the top Makefile, for M=."""

_BOOT = Path("/boot")
_REDUCED = re.compile(r"^CONFIG_DEBUG_INFO_REDUCED=y$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The kernel that needs scripts.

    Args:
        kernel: The kernel.
        vmlinux: Its ELF file with symbols.
    """

    kernel: Kernel
    vmlinux: Path


@dataclass(frozen=True, slots=True)
class Python:
    """The scripts.

    Args:
        directory: `scripts/gdb`, with the modules in `linux`.
        loader: `vmlinux-gdb.py`, which imports them.
    """

    directory: Path
    loader: Path


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that were found, all of the same kernel.

    Args:
        python: The scripts themselves, or None.
        constants: The generated `constants.py`, or None.
        template: `constants.py.in`, with its Makefile beside it, or None.
        build: A configured tree in which external modules can be built, or None.
        config: The `.config`, or None.
        source: A source to build in another directory, or None.
    """

    python: Python | None = None
    constants: Path | None = None
    template: Path | None = None
    build: Path | None = None
    config: Path | None = None
    source: Path | None = None


def look(wanted: Wanted, source: Path | None = None) -> Parts:
    """Search for the parts of a kernel's GDB scripts beside its vmlinux.

    Args:
        wanted: The kernel.
        source: A source or a build tree from the user, for missing parts.

    Raises:
        MismatchError: the parts belong to another version.
        UsageError: the kernel's debugging information is reduced.
        HostError: a file cannot be read.
    """
    places = _places(wanted, source)
    for place in places:
        check_same_build(place, wanted)
    parts = _parts(places)
    if parts.config is not None and _REDUCED.search(parts.config.read_text(errors="replace")):
        raise reduced(parts.config)
    return parts


def of_source(source: Path) -> Python | None:
    """Return the scripts in a kernel's source; None before Linux 4.0."""
    return _parts([source]).python


def check_same_build(place: Path, wanted: Wanted) -> None:
    """Check that a source or a tree belongs to a kernel.

    A tree has its whole release in include/config/kernel.release; a source has its version in the top
    Makefile (`KERNELVERSION`).

    Raises:
        MismatchError: it has another version, or another build.
    """
    kernel = wanted.kernel
    _refuse_other_build(place, wanted)
    theirs = _release(place)
    same = theirs == kernel.release
    if not theirs:
        theirs = kernel_source.version(place)
        same = _made_from(theirs, kernel.release)
    if theirs and kernel.release and not same:
        raise MismatchError(
            f"the GDB scripts in {place} belong to Linux {theirs}, and {kernel.origin} is {kernel.release}",
            hint="give the source of this kernel with --source, or build the kernel from this source",
            detail=f"{place}\n  version  {theirs}\n{kernel.image}\n  version  {kernel.release}"
            f"\n  build-id {kernel.build_id or 'none'}",
        )


def _made_from(version: str, release: str) -> bool:
    """Whether a kernel with this release can come from a source with this version.

    The release starts with the version, and scripts/setlocalversion appends to it. Debian's and Ubuntu's
    releases do not contain the stable version: 6.1.0-56-amd64 is 6.1.192.
    """
    if re.fullmatch(rf"{re.escape(version)}(?:[^0-9.].*)?", release):
        return True
    series = re.match(r"\d+\.\d+(?=\.\d+$)", version)
    return series is not None and release.startswith(f"{series[0]}.0-")


def _refuse_other_build(place: Path, wanted: Wanted) -> None:
    """Check the build-id of a built tree, since `constants.py` depends on the configuration."""
    built = place / "vmlinux"
    if not or_false(built.is_file) or built.samefile(wanted.vmlinux):
        return
    ours, theirs = (kimage.read_vmlinux(each).build_id for each in (wanted.vmlinux, built))
    if ours != theirs:
        raise MismatchError(
            f"{place} has another build than {wanted.vmlinux}: build-id {theirs} instead of {ours}",
            hint="give a clean source, or the tree that this kernel was built in",
        )


def config(wanted: Wanted, parts: Parts) -> bytes | None:
    """Return a kernel's configuration from its tree, its vmlinux (CONFIG_IKCONFIG) or its package."""
    if parts.config is not None:
        return parts.config.read_bytes()
    if inside := dotconfig.inside(wanted.vmlinux):
        return inside
    name = f"config-{wanted.kernel.release}"
    packaged = _first([place / name for place in (wanted.kernel.image.parent, _BOOT)])
    return packaged.read_bytes() if wanted.kernel.release and packaged is not None else None


def reduced(where: object) -> UsageError:
    """Return the error for a kernel with reduced debugging information."""
    return UsageError(
        f"the kernel was built with CONFIG_DEBUG_INFO_REDUCED=y ({where}): its debugging information"
        " lacks the types that its GDB scripts need",
        hint="turn DEBUG_INFO_REDUCED off and rebuild the kernel",
    )


def _places(wanted: Wanted, source: Path | None) -> list[Path]:
    top = wanted.vmlinux.parent
    release = wanted.kernel.release
    # `dev` may have modules of several kernels; skip those of others.
    inside = [each for each in dev_output.inside(top) if not release or each.parent.name == release]
    tops = [top, *inside, *([source] if source is not None else [])]
    made_from = [tree.source(each) for each in tops]
    places = [*tops, *(each for each in made_from if each is not None)]
    return list(dict.fromkeys(places))


def _parts(places: list[Path]) -> Parts:
    scripts = [place / _SCRIPTS for place in places]
    linux = [each / "linux" for each in scripts]
    template = next((each for each in linux if _has(each, "constants.py.in", "Makefile")), None)
    parts = next((each.parent for each in linux if _has(each, "utils.py")), None)
    loader = _first([each / LOADER for each in scripts])
    return Parts(
        python=Python(parts, loader) if parts is not None and loader is not None else None,
        constants=_first([each / "constants.py" for each in linux]),
        template=template / "constants.py.in" if template is not None else None,
        build=next((place for place in places if _has(place, *_PREPARED)), None),
        config=_first([place / ".config" for place in places]),
        source=next((place for place in places if _has(place, "Kconfig", "Kbuild", "init/Kconfig")), None),
    )


def _has(directory: Path, *names: str) -> bool:
    return all(or_false((directory / name).is_file) for name in names)


def _first(paths: list[Path]) -> Path | None:
    return next((path for path in paths if or_false(path.is_file)), None)


def _release(place: Path) -> str:
    said = place / "include/config/kernel.release"
    return said.read_text(errors="replace").strip() if or_false(said.is_file) else ""
