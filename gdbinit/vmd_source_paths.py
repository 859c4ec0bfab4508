"""How the file names in a kernel's debug information become those of today. Imports no GDB."""

from __future__ import annotations

import os
from pathlib import Path

KNOWN = ("hrtimer_resolution", "linux_banner")
"""Variables of every kernel; the first lies where GDB has looked already: `linux.constants` asks for it."""

TAILS = ("kernel/time/hrtimer.c", "init/version.c", "init/version-timestamp.c")
"""Where they are defined: the banner in the last since Linux 6.1."""


def rule(recorded: str, directory: Path) -> tuple[str, Path] | None:
    """Return how recorded file names become present ones: a prefix, and what takes its place.

    Args:
        recorded: A file name out of the DWARF: "/build/linux-6.1/init/version.c", "../init/version.c".
        directory: The source tree, or the directory that recorded relative names start from.

    Returns:
        None when the directory does not have that file.
    """
    tail = next((tail for tail in TAILS if recorded.endswith(tail)), None)
    if tail is None:
        return None
    prefix = recorded.removesuffix(tail).rstrip("/")
    for top in (directory, Path(os.path.normpath(directory / prefix)), directory.parent):
        if (top / tail).is_file():
            return prefix, top
    return None
