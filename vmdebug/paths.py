"""Paths as people write them, which may hold anything at all; and what lies below one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
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


def walk(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each directory of a kernel's modules, with its files; each once, however many links lead there.

    Of modules of several packages NixOS makes directories of links. `build` and `source` lead to what a
    kernel was built from: see modules_install in its Makefile.
    """
    seen: set[str] = set()
    for top, below, files in os.walk(directory, followlinks=True):
        here = os.path.realpath(top)
        below[:] = [] if here in seen else sorted({*below} - {"build", "source"})
        if here not in seen:
            seen.add(here)
            yield top, files


def _home(words: str) -> Path:
    try:
        return Path(words).expanduser()
    except (RuntimeError, ValueError):  # `~nobody`; a NUL in it
        return Path(words)
