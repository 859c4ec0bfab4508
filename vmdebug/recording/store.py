"""The directories of recordings: makes, finds, lists and deletes them."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from vmdebug import paths
from vmdebug.errors import HostError, StateError, UsageError
from vmdebug.recording import files, manifest
from vmdebug.recording.files import ENDING
from vmdebug.recording.manifest import Manifest

SPACE = 64 << 20
"""Bytes that must be free for a recording to begin."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def directory() -> Path:
    """Return where recordings are unless the user says where.

    Raises:
        HostError: the user has no home directory.
    """
    return paths.of_user(platformdirs.user_data_dir, "XDG_DATA_HOME") / "recordings"


def place(words: str, vm: str) -> Path:
    """Return the directory of a new recording.

    Args:
        words: What the user gave: a path; "" for a new name in `directory`.
        vm: The name of the VM.

    Raises:
        UsageError: there is something at that path.
    """
    if not words:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return directory() / f"{vm}-{stamp}-{uuid.uuid4().hex[:4]}{ENDING}"
    path = paths.absolute(words)
    path = path if path.name.endswith(ENDING) else path.with_name(path.name + ENDING)
    if os.path.lexists(path):
        raise UsageError(
            f"there is already a {path}",
            hint="choose another name for the recording, or delete that one: vmdebug recording delete",
        )
    return path


def make(path: Path) -> None:
    """Make a recording's directory, with the FIFOs and files of its serial lines.

    Raises:
        HostError: it cannot be made, or there is no space for a recording.
    """
    try:
        path.mkdir(parents=True, mode=0o700)
        for line in files.LINES:
            os.mkfifo(files.typed(path, line), 0o600)
            files.line(path, line).with_name(f"{line}.out").touch()
        free = os.statvfs(path)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise HostError(
            f"cannot make the recording {path}: {paths.failure(error)}",
            hint="say where it can be: --record FILE.vmdrec",
        ) from error
    if free.f_blocks and free.f_bavail * free.f_frsize < SPACE:
        shutil.rmtree(path, ignore_errors=True)
        raise HostError(
            f"no space for a recording: {paths.file_system(path)}",
            hint="free some space there, or record elsewhere: --record FILE.vmdrec",
        )


def find(words: str) -> Path:
    """Return the directory of a recording, or the file of a packed one.

    Args:
        words: A path; or the name of a recording in `directory`, or the beginning of one name.

    Raises:
        UsageError: there is none, or several names begin so.
    """
    path = paths.absolute(words)
    for candidate in (path, path.with_name(path.name + ENDING)):
        if os.path.lexists(candidate):
            return candidate
    if _NAME.fullmatch(words):
        found = [each for each in every() if each.name.startswith(words)]
        exact = [each for each in found if each.name in (words, words + ENDING)]
        if len(exact or found) == 1:
            return (exact or found)[0]
        if found:
            names = ", ".join(each.name for each in found)
            raise UsageError(f"{len(found)} recordings begin with {words}", hint=f"they are: {names}")
    raise UsageError(f"there is no recording {words}", hint="list them: vmdebug recording list")


def newest() -> Path:
    """Return the recording that began last.

    Raises:
        UsageError: there is none.
    """
    found = list(every())
    if not found:
        raise UsageError("there are no recordings", hint="make one: vmdebug start --record")
    return max(found, key=lambda each: each.stat().st_mtime_ns)


def every() -> Iterator[Path]:
    """Yield the recordings in `directory`, by name."""
    try:
        entries = sorted(directory().iterdir())
    except FileNotFoundError:
        return
    yield from (each for each in entries if files.manifest(each).is_file() or _packed(each))


def _packed(path: Path) -> bool:
    return path.name.endswith(ENDING) and path.is_file()


def recording_process(found: Manifest) -> bool:
    """Whether QEMU still records."""
    return found.process is not None and found.process.alive()


def delete(path: Path) -> None:
    """Delete a recording.

    Raises:
        StateError: QEMU still records.
        HostError: a file cannot be deleted.
    """
    if path.is_dir():
        found = manifest.read(files.manifest(path))
        if recording_process(found):
            raise StateError(
                f"{path.name} is being recorded", hint=f"end it first: vmdebug stop {found.spec.name}"
            )
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise HostError(f"cannot delete {path}: {paths.failure(error)}") from error
