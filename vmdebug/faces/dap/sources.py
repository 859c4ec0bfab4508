"""Translates the paths of source files between GDB and the client.

GDB has the paths that the compiler recorded, or those of the tree that `vmd-source` has found for them. The
client has the paths of the files that it shows: perhaps of another checkout, or through a symbolic link.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmdebug.faces.dap.wire import Message
from vmdebug.paths import or_false

OTHER_VERSION = "the kernel was built from another version of this file: lines may differ"

_TOP_FILES = ("Kbuild", "init/main.c")
"""What the top of a kernel's source tree has."""


def is_tree(directory: Path) -> bool:
    """Return whether a directory is the top of a kernel's source tree."""
    return all(or_false((directory / name).is_file) for name in _TOP_FILES)


class Sources:
    """The trees of one session.

    Args:
        built: The tree in which GDB finds the sources; None if there is none.
        shown: The tree that the client shows; None: the same one.
    """

    def __init__(self, built: Path | None, shown: Path | None) -> None:
        self._built = built
        self._shown = None if built is None or shown == built else shown

    def to_gdb(self, path: str) -> tuple[str, str]:
        """Return GDB's path for a path of the client, and a note for the user; "" for none."""
        if self._built is None:
            return path, ""
        given = Path(path)
        if given.is_absolute() and given.is_relative_to(self._built):
            return path, ""
        for tail in _tails(given):
            here = self._built / tail
            if or_false(here.is_file):
                differs = or_false(given.is_file) and not _identical(given, here)
                return str(here), OTHER_VERSION if differs else ""
        return path, ""

    def to_client(self, source: Message) -> Message:
        """Return a `Source` of GDB with the path of a file that exists, if there is one."""
        path = source.get("path")
        if not isinstance(path, str):
            return source
        found = self._existing(Path(path))
        if found is None:
            return {**source, "origin": "this machine does not have the file"}
        rest = {key: value for key, value in source.items() if key != "sourceReference"}
        return {**rest, "path": str(found)}

    def translated(self, body: Any) -> Any:
        """Return an answer of GDB with each `source` in it translated."""
        if isinstance(body, list):
            return [self.translated(each) for each in body]
        if not isinstance(body, dict):
            return body
        return {
            key: self.to_client(value)
            if key == "source" and isinstance(value, dict)
            else self.translated(value)
            for key, value in body.items()
        }

    def _existing(self, path: Path) -> Path | None:
        normal = Path(os.path.normpath(path))
        here = normal if or_false(normal.is_file) else None
        if self._built is None:
            return here
        if here is None:
            here = next(
                (self._built / tail for tail in _tails(normal) if or_false((self._built / tail).is_file)),
                None,
            )
        if here is not None and self._shown is not None and here.is_relative_to(self._built):
            theirs = self._shown / here.relative_to(self._built)
            if or_false(theirs.is_file) and _identical(theirs, here):
                return theirs
        return here


def _tails(path: Path) -> Iterator[Path]:
    """Yield the ends of a path, the longest first: `arch/x86/kernel/signal.c` before `kernel/signal.c`."""
    parts = path.parts[1:] if path.is_absolute() else path.parts
    for start in range(len(parts)):
        yield Path(*parts[start:])


def _identical(one: Path, other: Path) -> bool:
    return or_false(lambda: filecmp.cmp(one, other, shallow=True))
