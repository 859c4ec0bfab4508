"""Recordings as single files: packs one with all that a colleague needs, opens and checks it.

A packed recording is a zip archive with the files of the directory, and those that the recording only names:
disk images, symbols, modules.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmdebug import cache, guest, paths
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, MismatchError, UsageError
from vmdebug.progress import Report, Step, silent
from vmdebug.recording import ending, event_log, files, manifest
from vmdebug.recording.manifest import Kept, Manifest

OPEN_SECONDS = 600.0
"""How long another vmdebug may take to unpack the same recording."""

_CHUNK = 1 << 20
_OURS = ("rr.log", "console.out", "shell.out")


def pack(directory: Path, to: Path, *, symbols: bool = True, report: Report = silent) -> Path:
    """Write a recording as one file.

    Args:
        directory: The recording, which has ended.
        to: The file.
        symbols: Whether to include vmlinux, which is most of it.
        report: Called with each file.

    Raises:
        StateError: it is being recorded.
        UsageError: `to` exists; or the directory is no recording.
        HostError: a file is missing, or the file cannot be written; nothing is left.
    """
    ended = ending.settle(directory)
    about = manifest.read(files.manifest(directory))
    if to.exists():
        raise UsageError(f"there is already a {to}", hint="choose another name: -o FILE.vmdrec")
    packed = tuple(_packed(about, symbols=symbols))
    partial = to.with_name(f".{to.name}.part")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(
                files.manifest(directory).name,
                guest.encode(msgspec.structs.replace(about, files=packed, process=None)),
            )
            archive.writestr(files.ended(directory).name, guest.encode(ended))
            for name in _OURS:
                archive.write(directory / name, name)
            for number, file in enumerate(packed):
                report(Step("packing", number, len(packed), file.name))
                if file.name:
                    inside = directory / file.name
                    archive.write(inside if inside.exists() else file.original, file.name)
        partial.replace(to)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise HostError(f"cannot pack {directory.name}: {paths.failure(error)}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return to


def _packed(about: Manifest, *, symbols: bool) -> Iterator[Kept]:
    """Yield the files with their names in the archive."""
    for number, file in enumerate(about.files):
        if file.original == about.spec.kernel.vmlinux:
            yield msgspec.structs.replace(file, name="vmlinux" if symbols else "")
        else:
            yield msgspec.structs.replace(file, name=file.name or f"{number}-{file.original.name}")


def opened(path: Path) -> Path:
    """Return the directory of a recording; unpack a packed one into the cache first.

    Raises:
        UsageError: the file is no recording.
        HostError: it cannot be unpacked.
        DeadlineError: another vmdebug unpacks it, and did not finish.
    """
    if path.is_dir():
        return path
    try:
        with zipfile.ZipFile(path) as archive:
            about = guest.decode(archive.read("manifest.json"), Manifest)
            into = cache.directory("recordings") / f"{about.id}{files.ENDING}"
            into.parent.mkdir(parents=True, exist_ok=True)
            deadline = Deadline.after(OPEN_SECONDS)
            with cache.lock(into, "unpacking the recording", silent, deadline):
                if not files.ended(into).exists():
                    # Last the file that says that all are there.
                    names = sorted(archive.namelist(), key=lambda name: name == "ended.json")
                    for name in names:
                        archive.extract(name, into)
    except (zipfile.BadZipFile, KeyError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"{path} is no packed recording: {error}", hint="`vmdebug recording pack` makes one"
        ) from error
    except OSError as error:
        raise HostError(f"cannot unpack {path}: {paths.failure(error)}") from error
    return into


def verify(directory: Path) -> tuple[str, ...]:
    """Compare a recording's files with its description, and return what was checked.

    Raises:
        UsageError: it is no recording.
        StateError: it is being recorded.
        MismatchError: a file has changed, or is missing.
    """
    about = manifest.read(files.manifest(directory))
    ended = ending.settle(directory)
    done = []
    log = files.log(directory)
    if not log.is_file() or _sha256(log) != ended.sha256:
        raise MismatchError(
            f"{log} has changed since the end of the recording", hint="it cannot be replayed; record again"
        )
    events = event_log.read(log)
    done.append(f"{log.name}: {events.events} events, {events.icount} instructions")
    if files.console(directory).stat().st_size != ended.console_bytes:
        raise MismatchError(f"{files.console(directory)} has changed since the end of the recording")
    done.append(f"console.out: {ended.console_bytes} bytes")
    for file in about.files:
        path = directory / file.name if file.name else file.original
        if not path.exists():
            raise MismatchError(
                f"{path} is missing, and the recording only names it", hint="record the guest again"
            )
        if file.sha256 and _sha256(path) != file.sha256:
            raise MismatchError(f"{path} has changed since the recording", hint="record the guest again")
        done.append(f"{path.name}: {'same' if file.sha256 else 'there'}")
    return tuple(done)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
