"""Where the files that are not Python lie: `gdbinit/` and `kconfigs/`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def directory(name: str) -> Path:
    """Return the directory `name`: inside the installed package, or beside it in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def gdbinit() -> Path:
    """Return the directory of what runs inside GDB."""
    return directory("gdbinit")


def kconfigs() -> Path:
    """Return the directory of kernel configuration fragments."""
    return directory("kconfigs")
