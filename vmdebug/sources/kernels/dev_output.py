"""The `dev` output of a kernel that Nix built: its symbols, and what else of it a debugger can use.

Rests on nixpkgs' pkgs/os-specific/linux/kernel/build.nix (earlier manual-config.nix):
`vmlinux` at the top, `lib/modules/V/source` with what is left of the source after
pruning, `lib/modules/V/build` with what building modules needs. The kernel's GDB
scripts have been in the one and in the other, without `constants.py` and with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class KernelDev:
    """What was found in it.

    Args:
        vmlinux: The ELF file with symbols, or None.
        gdb_scripts: Directory with `vmlinux-gdb.py` beside `scripts/gdb`, or None.
        source: Directory that DWARF's relative paths start from, or None.
    """

    vmlinux: Path | None
    gdb_scripts: Path | None
    source: Path | None


def read(dev: Path) -> KernelDev:
    """Look through a `dev` output."""
    vmlinux = dev / "vmlinux"
    return KernelDev(
        vmlinux=vmlinux if vmlinux.is_file() else None,
        gdb_scripts=next((tree for tree in (dev, *inside(dev)) if not why_unusable(tree)), None),
        source=_source(dev),
    )


def why_unusable(tree: Path) -> str:
    """Return what keeps the GDB scripts of a directory from loading as they stand; "" when nothing does.

    vmlinux-gdb.py looks for `scripts/gdb` beside itself, and every module of it
    imports the generated `constants.py`.

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
        return f"vmlinux-gdb.py does not stand beside {scripts}"
    return ""


def inside(dev: Path) -> list[Path]:
    """Return the directories `build` and `source` of a `dev` output that there are; of a tree, none."""
    return [each for place in ("build", "source") for each in sorted(dev.glob(f"lib/modules/*/{place}"))]


def _source(dev: Path) -> Path | None:
    # Nix builds in the source's directory `build`, so DWARF says ../include/linux/list.h.
    # That directory is not in `source`; any other one of its depth leads to the same files.
    return next(iter(sorted(dev.glob("lib/modules/*/source/include"))), None)
