"""The directories of the files that are not Python modules of vmdebug: `gdbinit/` and `kconfigs/`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def directory(name: str) -> Path:
    """Return the directory `name`: in the installed package, or beside it in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def gdbinit() -> Path:
    """Return the directory of the code that runs inside GDB."""
    return directory("gdbinit")


def kconfigs() -> Path:
    """Return the directory of the kernel configuration fragments."""
    return directory("kconfigs")
