"""Paths as users write them, and the directories of a kernel's modules."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vmdebug.errors import HostError


def absolute(words: str, directory: Path | None = None) -> Path:
    """Return the absolute path for a path that a user wrote.

    Args:
        words: The path; `~` and `~USER` are home directories.
        directory: Where a relative path starts; None is the current directory.
    """
    path = ((directory or Path.cwd()) / _home(words)).absolute()
    # `..` after a symbolic link leads to the parent of the link's target: resolve it, do not just remove it.
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a loop of links; a NUL in the path
        return path.resolve() if ".." in path.parts else path
    return path


def or_false(question: Callable[[], bool]) -> bool:
    """Return the result of a test of a path, as in `or_false(path.is_dir)`; False if pathlib raises.

    pathlib raises for a name that is too long, or a directory without search permission.
    """
    try:
        return question()
    except (OSError, ValueError):
        return False


def of_user(find: Callable[[str], str], variable: str) -> Path:
    """Return vmdebug's directory among the user's, as platformdirs finds it.

    Args:
        find: A function of platformdirs.
        variable: The variable that sets it, for the error.

    Raises:
        HostError: the user has no home directory, as in some containers.
    """
    with contextlib.suppress(RuntimeError):  # of platformdirs 4.3 and later; others return `~/…`
        where = Path(find("vmdebug"))
        if where.is_absolute():
            return where
    raise HostError(
        f"user {os.geteuid()} has no home directory: HOME is not set, and the password file has no entry",
        hint=f"set HOME, or {variable}, to a directory that you can write to",
    )


FULL_BELOW_BYTES = 1 << 20
"""Bytes below which a file system counts as full."""


def full(path: Path) -> bool:
    """Return whether the file system of a path is full; the path need not exist."""
    sizes = os.statvfs(_existing(path))
    # Some file systems do not count blocks, and report 0.
    return bool(sizes.f_blocks) and sizes.f_bavail * sizes.f_frsize < FULL_BELOW_BYTES


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if os.path.lexists(each)).resolve()


def file_system(path: Path) -> str:
    """Return in words where the file system of a path is mounted, and how much of it is free.

    Args:
        path: A path, which need not exist.
    """
    place = _existing(path)
    while not os.path.ismount(place):
        place = place.parent
    sizes = os.statvfs(place)
    free, size = (count * sizes.f_frsize / 2**20 for count in (sizes.f_bavail, sizes.f_blocks))
    return f"the file system {place} has {free:.0f} of {size:.0f} MiB free"


def failure(error: OSError) -> str:
    """Return an error of the system in words, with its file, and the file system if that is full."""
    words = error.strerror or str(error)
    if not error.filename:
        return words
    where = os.fsdecode(error.filename)
    full = f"; {file_system(Path(where))}" if error.errno == errno.ENOSPC else ""
    return f"{words}: {where}{full}"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that no reader ever sees a part of it, and make its directory if needed.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    import tempfile  # noqa: PLC0415 - imports random, and most runs write no such file

    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


MODULE_ENDINGS = (".ko.debug", ".ko", ".ko.xz", ".ko.zst", ".ko.gz", ".ko.bz2")
"""In order of preference within one directory: a .debug file has the symbols that strip has removed."""


def module_name(file: Path) -> str:
    """Return the kernel's name of the module in a file: the kernel replaces the dashes of file names."""
    return file.name.partition(".ko")[0].replace("-", "_")


def modules(place: Path) -> Iterator[Path]:
    """Yield the module files below a directory, or the file itself if it is one."""
    if or_false(place.is_file):
        yield place
        return
    for top, files in walk(place):
        found = [name for name in files if name.endswith(MODULE_ENDINGS)]
        for name in sorted(found, key=lambda each: (each.partition(".ko")[0], _rank(each))):
            yield Path(top, name)


def _rank(name: str) -> int:
    return next(rank for rank, ending in enumerate(MODULE_ENDINGS) if name.endswith(ending))


def walk(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each directory with modules of a kernel, and its files; once, even if several links lead to it.

    NixOS merges the modules of several packages into directories of links. `build` and `source` are skipped:
    they link to the kernel's build tree and source, see modules_install in its Makefile.
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
    except (RuntimeError, ValueError):  # `~NAME` of an unknown user; a NUL in the path
        return Path(words)
