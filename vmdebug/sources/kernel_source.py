"""Kernel source: a directory, or a tarball that vmdebug unpacks once into the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from vmdebug import arch, cache, process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.paths import or_false
from vmdebug.progress import Report, Step

NEEDED = 1.7e9
"""Bytes to unpack a source (Linux 6.1 takes 1.5 GB)."""

_DEBIAN = Path("/usr/src")
_PATTERN = "linux-source-*.tar.xz"
_MARKS = ("Kconfig", "Makefile", "scripts/kconfig/merge_config.sh")
_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *=[ \t]*(\S*)", re.MULTILINE)
_WHAT = "unpacking the kernel source"
_REPORT_EVERY = 200
"""Report every so many files: a source has 84,000, and tar unpacks 6000 a second."""


@dataclass(frozen=True, slots=True)
class Source:
    """Kernel source, possibly packed.

    Args:
        path: A directory or a tarball, absolute.
        identity: A text that changes when the tarball changes. For a directory it is the path, since make
            itself detects changed files.
        changes: Whether files in it may change, as in a directory.
    """

    path: Path
    identity: str
    changes: bool


def default_source() -> Path:
    """Return the newest tarball of Debian's linux-source packages.

    Raises:
        HostError: there is none.
    """
    tarballs = sorted(_DEBIAN.glob(_PATTERN), key=_by_version)
    if not tarballs:
        raise HostError(
            f"no kernel source: no {_PATTERN} in {_DEBIAN}",
            hint="install it: apt install linux-source  (or name your own with --source DIR)",
        )
    return tarballs[-1]


def look(path: Path | None) -> Source:
    """Return the source at a path; None returns `default_source`.

    Raises:
        HostError: there is no default source.
        UsageError: the path is neither a kernel source nor a tarball; or the source is configured in-tree,
            so kbuild refuses to build it in another directory (`outputmakefile` in the top Makefile).
    """
    path = (default_source() if path is None else path).expanduser().resolve()
    if path.is_file():
        seen = path.stat()
        return Source(path, f"{path.name} {seen.st_size} {seen.st_mtime_ns}", changes=False)
    if not path.is_dir():
        raise UsageError(f"{path} does not exist", hint="--source takes a kernel's source or a tarball of it")
    absent = [mark for mark in _MARKS if not (path / mark).is_file()]
    if absent:
        raise UsageError(
            f"{path} is not a kernel source: it has no {absent[0]}",
            hint="--source takes the directory with Kconfig and the top Makefile",
        )
    for mark in (".config", "include/config", *(f"{row.source}/include/generated" for row in arch.rows())):
        if (path / mark).exists():
            raise UsageError(
                f"{path} has been built in (it has {mark}), so kbuild builds it nowhere else",
                hint=f"clean it, which deletes what was built in it: make -C {path} mrproper",
            )
    return Source(path, str(path), changes=True)


def unpacked(source: Source, *, report: Report, deadline: Deadline) -> Path:
    """Return the directory of a source, after unpacking a tarball.

    Args:
        source: The result of `look`.
        report: Receives the current file now and then.
        deadline: When to stop unpacking, or waiting for another process that does.

    Raises:
        HostError: the disk is full, or the cache is not writable.
        UsageError: the tarball is not a kernel source.
        DeadlineError: it took too long.
    """
    if source.changes:
        return source.path
    key = hashlib.sha256(source.identity.encode()).hexdigest()[:16]
    target = cache.directory("source") / key
    with cache.lock(target, _WHAT, report, deadline):
        if not target.is_dir():
            _unpack(source.path, target, report, deadline)
    return target


def version(source: Path) -> str:
    """Return the version of a kernel's source: "6.1.148"; "" where its top Makefile has none.

    As `KERNELVERSION` in that Makefile.
    """
    makefile = source / "Makefile"
    if not or_false(makefile.is_file):
        return ""
    says: dict[str, str] = dict(_VERSION.findall(makefile.read_text(errors="replace")[:1000]))
    numbers = [says.get(name, "") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    if not numbers[0]:
        return ""
    return ".".join(filter(None, numbers)) + says.get("EXTRAVERSION", "")


def unpack_argv(tarball: Path, directory: Path) -> tuple[str, ...]:
    """Return the command that unpacks a kernel tarball, without its top directory."""
    return ("tar", "-xvf", str(tarball), "-C", str(directory), "--strip-components=1", "--no-same-owner")


def _unpack(tarball: Path, target: Path, report: Report, deadline: Deadline) -> None:
    partial = target.with_name(f"{target.name}.partial")
    cache.check_space(target.parent, NEEDED)
    with cache.writing(target.parent, NEEDED):
        # An interrupted unpack may have left incomplete files.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        counted = 0

        def count(line: str) -> None:
            nonlocal counted
            counted += 1
            if counted % _REPORT_EVERY == 0:
                report(Step(_WHAT, done=counted, note=line.partition("/")[2]))

        # In English, because `refuse_full` reads the message about a full disk.
        env = {**os.environ, "LC_ALL": "C"}
        done = process.run(
            unpack_argv(tarball, partial), env=env, deadline=deadline, check=False, on_line=count
        )
        if done.status != 0:
            cache.refuse_full(done.stderr, target.parent, NEEDED)
            raise BuildError(f"{tarball} could not be unpacked", detail=process.tail(done.stderr))
        absent = [mark for mark in _MARKS if not (partial / mark).is_file()]
        if absent:
            shutil.rmtree(partial)
            raise UsageError(f"{tarball} is not a kernel source: it has no {absent[0]}")
        partial.rename(target)


def _by_version(path: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", path.name)))
