"""Paths as people write them, which may hold anything at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path


def absolute(words: str, directory: Path | None = None) -> Path:
    """Return the path that a user wrote, absolute.

    Args:
        words: The path; `~` and `~USER` are homes.
        directory: Where a relative one starts; None is the current directory.
    """
    path = ((directory or Path.cwd()) / _home(words)).absolute()
    # A link's parent is not the directory that the link is in: `..` is followed, not cut off.
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # links in a circle; a NUL in it
        return path.resolve() if ".." in path.parts else path
    return path


def holds(question: Callable[[], bool]) -> bool:
    """Ask a path something, as `holds(path.is_dir)`.

    Where pathlib raises (a name that is too long, a directory that may not be searched), the answer is no.
    """
    try:
        return question()
    except (OSError, ValueError):
        return False


def _home(words: str) -> Path:
    try:
        return Path(words).expanduser()
    except (RuntimeError, ValueError):  # `~nobody`; a NUL in it
        return Path(words)
