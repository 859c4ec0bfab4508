"""What is known about a recording once it has ended, whoever ended it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vmdebug import guest, paths
from vmdebug.errors import HostError, StateError
from vmdebug.recording import event_log, files, manifest, positions, store
from vmdebug.recording.manifest import Ended


def settle(directory: Path) -> Ended:
    """Return what is known about a recording; the first call after its end reads QEMU's log.

    If QEMU was killed, the log gets the end that QEMU could not write. What QEMU still had in memory is lost:
    at most the last 4 KiB of its log, some thousand events.

    Raises:
        UsageError: the directory is no recording, or its log is damaged.
        StateError: QEMU still records.
        HostError: the log cannot be repaired.
    """
    known = manifest.read_ended(files.ended(directory))
    if known is not None:
        return known
    about = manifest.read(files.manifest(directory))
    if store.recording_process(about):
        raise StateError(
            f"{directory.name} is being recorded", hint=f"end it first: vmdebug stop {about.spec.name}"
        )
    path = files.log(directory)
    log = event_log.read(path)
    try:
        if not log.complete:
            event_log.repair(path, log, about.log_version)
        lines = positions.read(directory, log)
        ended = Ended(
            icount=log.icount,
            seconds=lines[-1].seconds if lines else 0.0,
            complete=log.complete,
            log_bytes=path.stat().st_size,
            console_bytes=files.console(directory).stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for line in files.LINES:
            files.typed(directory, line).unlink(missing_ok=True)
        paths.write_atomically(files.ended(directory), guest.encode(ended))
    except OSError as error:
        raise HostError(f"cannot complete {directory}: {paths.failure(error)}") from error
    return ended
