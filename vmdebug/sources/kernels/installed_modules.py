"""Where the modules of a distribution's kernel are, and where the debug package has their symbols.

A package that is unpacked with `dpkg -x` or `rpm2cpio` has the same directories below its own top.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from vmdebug import paths
from vmdebug.paths import or_false
from vmdebug.sources.kernels import modules

ROOT = Path("/")

_MODULES = ("lib/modules", "usr/lib/modules")
"""Where packages install modules."""

_DEBUG = ("usr/lib/debug/lib/modules", "usr/lib/debug/usr/lib/modules")
"""Where debug packages install the unstripped modules (Debian), or their symbols (Fedora: `.ko.debug`)."""

_PLACES = ("boot", "usr/lib/debug/boot", "usr/lib/debug")
"""Where images and vmlinux files are, below the top of a package."""


def tops(image: Path, vmlinux: Path | None) -> tuple[Path, ...]:
    """Return the directories that may have the modules: the tops of the packages of these files, and `/`.

    Args:
        image: The boot image, absolute.
        vmlinux: The ELF file with its symbols, or None.
    """
    found = []
    for file in (image, *((vmlinux,) if vmlinux is not None else ())):
        above = file.parent.as_posix()
        found += [Path(above.removesuffix(place)) for place in _PLACES if above.endswith(f"/{place}")]
        # lib/modules/RELEASE/vmlinuz of Fedora, usr/lib/debug/lib/modules/RELEASE/vmlinux.
        inside = file.parent.parent.as_posix()
        found += [
            Path(inside.removesuffix(place)) for place in (*_DEBUG, *_MODULES) if inside.endswith(f"/{place}")
        ]
    return tuple(dict.fromkeys([*found, ROOT]))


def loadable(image: Path, release: str, below: Iterable[Path]) -> Path | None:
    """Return the directory lib/modules/RELEASE of a kernel; None if there is none.

    Debian's debug package has whole modules, so it is enough.

    Args:
        image: The boot image; its own directory may be that directory.
        release: The kernel's `uname -r`.
        below: See `tops`.
    """
    beside = [image.parent] if image.parent.name == release else []
    packages = list(below)
    places = [
        *beside,
        *(top / place / release for top in packages for place in _MODULES),
        *(top / place / release for top in packages for place in _DEBUG),
    ]
    return next((each for each in places if _has_code(each)), None)


def symbols(release: str, below: Iterable[Path]) -> tuple[Path, ...]:
    """Return the directories of debug packages with the symbols of a kernel's modules."""
    places = (top / place / release for top in below for place in _DEBUG)
    return tuple(each for each in places if or_false(each.is_dir))


def of_directory(directory: Path, release: str) -> Path | None:
    """Return the directory lib/modules/RELEASE that a user names; None if it has no such modules.

    Args:
        directory: That directory itself, lib/modules, or the top of a package or root file system.
        release: The kernel's `uname -r`.
    """
    places = (directory, directory / release, *(directory / place / release for place in _MODULES))
    return next((each for each in reversed(places) if any(_walked(each))), None)


def _walked(directory: Path) -> Iterator[Path]:
    return (
        (each for each in paths.modules(directory) if each.suffix != ".debug")
        if directory.is_dir()
        else iter(())
    )


def _has_code(directory: Path) -> bool:
    first = next(_walked(directory), None)
    return first is not None and modules.is_loadable(first)
