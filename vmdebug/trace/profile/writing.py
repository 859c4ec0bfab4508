"""Writes profiles, and the differences of two, in the format that the user wants or the file's name says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from vmdebug import paths
from vmdebug.errors import HostError, UsageError
from vmdebug.spelling import nearest
from vmdebug.trace.profile.formats import flame_svg, page, perf_script, pprof, speedscope, texts
from vmdebug.trace.profile.profile import Profile

_ONE: Mapping[str, Callable[[Profile], str | bytes]] = {
    "text": texts.table,
    "html": page.render,
    "svg": flame_svg.render,
    "speedscope": speedscope.render,
    "firefox": perf_script.render,
    "pprof": pprof.render,
    "folded": texts.folded,
    "json": Profile.encode,
}

_TWO: Mapping[str, Callable[[Profile, Profile], str]] = {
    "text": texts.table,
    "html": page.render,
    "svg": flame_svg.render,
    "folded": texts.folded,
}

FORMATS = tuple(_ONE)
DIFFERENCE_FORMATS = tuple(_TWO)

_ENDINGS = {
    ".txt": "text",
    ".html": "html",
    ".htm": "html",
    ".svg": "svg",
    ".speedscope.json": "speedscope",
    ".perf": "firefox",
    ".pb.gz": "pprof",
    ".pprof": "pprof",
    ".folded": "folded",
    ".json": "json",
}
"""The formats of files by the ends of their names; the first that fits counts."""


def format_of(wanted: str | None, path: str | os.PathLike[str] | None, *, two: bool = False) -> str:
    """Return the format to write: the one that is wanted, otherwise that of the file's name, otherwise text.

    Args:
        wanted: One of `FORMATS`, or None.
        path: The file, or None for standard output.
        two: Whether the difference of two profiles is written.

    Raises:
        UsageError: there is no such format, or the file's name says none.
    """
    known = DIFFERENCE_FORMATS if two else FORMATS
    if wanted is None and path is None:
        return "text"
    if wanted is None:
        name = os.fspath(path or "")
        wanted = next((each for ending, each in _ENDINGS.items() if name.endswith(ending)), None)
        if wanted is None:
            raise UsageError(
                f"the name {name} does not tell a format", hint=f"give one: --format {'|'.join(known)}"
            )
    if wanted not in known:
        what = "differences" if two and wanted in FORMATS else "profiles"
        near = nearest(wanted, known)
        did = f"; did you mean {near}?" if near else ""
        raise UsageError(
            f"there is no format {wanted!r} of {what}", hint=f"the formats are {', '.join(known)}{did}"
        )
    return wanted


def rendered(profile: Profile, form: str, before: Profile | None = None) -> bytes:
    """Return the bytes of a profile in a format, or of its difference from an earlier one."""
    found = _ONE[form](profile) if before is None else _TWO[form](profile, before)
    return found if isinstance(found, bytes) else found.encode()


def check(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written, before the work whose result it gets.

    Raises:
        UsageError: there is no directory for it, or it is a directory.
        HostError: it must not be written.
    """
    file = Path(path).absolute()
    if not paths.or_false(file.parent.is_dir):
        raise UsageError(f"there is no directory {file.parent}", hint="make it, or write elsewhere")
    if paths.or_false(file.is_dir):
        raise UsageError(f"{os.fspath(path)} is a directory", hint="name a file in it")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise HostError(f"cannot write {os.fspath(path)}: it is not permitted", hint="write it elsewhere")


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file.

    Raises:
        HostError: it cannot be written.
    """
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise HostError(
            f"cannot write {os.fspath(path)}: {error.strerror}", hint="make room there, or write it elsewhere"
        ) from error
