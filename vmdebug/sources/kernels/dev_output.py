"""The `dev` output of a kernel that Nix built: its symbols, GDB scripts and source.

See nixpkgs' pkgs/os-specific/linux/kernel/build.nix (formerly manual-config.nix): `vmlinux` is at the top,
`lib/modules/V/source` has a part of the source, and `lib/modules/V/build` has what external modules need. The
kernel's GDB scripts are in one or the other, depending on the version, with or without `constants.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class KernelDev:
    """The contents of a `dev` output.

    Args:
        vmlinux: The ELF file with symbols, or None.
        gdb_scripts: Directory with `vmlinux-gdb.py` beside `scripts/gdb`, or None.
        source: Directory where relative paths in DWARF start, or None.
    """

    vmlinux: Path | None
    gdb_scripts: Path | None
    source: Path | None


def read(dev: Path) -> KernelDev:
    """Return the contents of a `dev` output."""
    vmlinux = dev / "vmlinux"
    return KernelDev(
        vmlinux=vmlinux if vmlinux.is_file() else None,
        gdb_scripts=next((tree for tree in (dev, *inside(dev)) if not why_unusable(tree)), None),
        source=_source(dev),
    )


def why_unusable(tree: Path) -> str:
    """Return why GDB cannot load the scripts of a directory as they are; "" if it can.

    vmlinux-gdb.py searches for `scripts/gdb` beside itself, and all of its modules import the generated
    `constants.py`.

    Args:
        tree: A build tree, or the `dev` output of a kernel that Nix built.
    """
    scripts = tree / "scripts/gdb"
    if not scripts.is_dir():
        holder = next((each for each in inside(tree) if (each / "scripts/gdb").is_dir()), None)
        if holder is None:
            return f"there is no scripts/gdb in {tree}"
        return why_unusable(holder) or f"they are in {holder}"
    if not (scripts / "linux/constants.py").is_file():
        return f"{scripts} lacks the generated linux/constants.py"
    if not (tree / "vmlinux-gdb.py").is_file():
        return f"there is no vmlinux-gdb.py beside {scripts}"
    return ""


def inside(dev: Path) -> list[Path]:
    """Return the directories `build` and `source` of a `dev` output; for a tree, an empty list."""
    return [each for place in ("build", "source") for each in sorted(dev.glob(f"lib/modules/*/{place}"))]


def _source(dev: Path) -> Path | None:
    # Nix builds in `build` inside the source, so paths in DWARF are like ../include/linux/list.h.
    # `source` has no such directory; any other one at the same depth leads to the same files.
    return next(iter(sorted(dev.glob("lib/modules/*/source/include"))), None)
