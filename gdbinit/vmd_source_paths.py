"""Maps the file names in a kernel's debug information to present paths. Does not import GDB."""

from __future__ import annotations

import os
import re
from pathlib import Path

KNOWN = ("hrtimer_resolution", "linux_banner")
"""Variables of every kernel."""

_TAILS = ("kernel/time/hrtimer.c", "init/version.c", "init/version-timestamp.c")
"""The files that define them; the banner is in the last one since Linux 6.1."""

FIRST = re.compile(r"arch/\w+/kernel/head\w*\.S$")
"""The file with the first instructions of a kernel."""


def rule(recorded: str, directory: Path) -> tuple[str, Path] | None:
    """Return a prefix of recorded file names, and the directory that replaces it.

    Args:
        recorded: A file name in the DWARF: "/build/linux-6.1/init/version.c", "../init/version.c".
        directory: The source tree, or the directory that relative names in the DWARF start from.

    Returns:
        None if the directory does not have that file.
    """
    first = FIRST.search(recorded)
    tail = first[0] if first else next((tail for tail in _TAILS if recorded.endswith(tail)), None)
    if tail is None:
        return None
    prefix = recorded.removesuffix(tail).rstrip("/")
    for top in (directory, Path(os.path.normpath(directory / prefix)), directory.parent):
        if (top / tail).is_file():
            return prefix, top
    return None
