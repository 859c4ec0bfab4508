"""Whether a QEMU records, and the format of its log: found by recording an empty machine once."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.filecache import cached
from vmdebug.recording import event_log
from vmdebug.vm import recorded

PROBE_SECONDS = 20.0
"""How long the probe may take; 0.15 s is usual."""


class LogFormat(msgspec.Struct, frozen=True):
    """The format of a QEMU's log.

    Args:
        version: Its version; see `event_log.VERSIONS`.
    """

    version: int


def of(qemu: Path, *, deadline: Deadline) -> LogFormat:
    """Return the format of a QEMU's log.

    Raises:
        HostError: it does not record, or writes a log of a format that this vmdebug does not know.
        DeadlineError: it took too long.
    """
    try:
        found = cached(qemu, "qemu-record-1", LogFormat, lambda: _ask(qemu, deadline))
    except OSError as error:
        raise HostError(f"cannot read {qemu}: {error.strerror}") from error
    if found.version not in event_log.VERSIONS:
        raise HostError(
            f"{qemu} writes a log of version {found.version:#x}, and vmdebug knows"
            f" {', '.join(map(hex, event_log.VERSIONS))}",
            hint="put QEMU 7.2, 10 or 11 first on PATH",
        )
    return found


def _ask(qemu: Path, deadline: Deadline) -> LogFormat:
    with tempfile.TemporaryDirectory(prefix="vmdebug-record-") as directory:
        log = Path(directory) / "rr.log"
        words = [str(qemu), "-nodefaults", "-machine", "none", "-accel", "tcg", "-S", "-display", "none"]
        words += ["-icount", f"shift=6,rr=record,rrfile={log}"]
        words += ["-chardev", "stdio,id=qmp", "-qmp", "chardev:qmp"]
        asked = "".join(json.dumps({"execute": each}) for each in ("qmp_capabilities", "quit"))
        done = process.run(words, stdin=asked.encode(), deadline=deadline.at_most(PROBE_SECONDS), check=False)
        if done.status != 0 or not log.exists():
            raise recorded.refused_here(process.tail(done.stderr))
        return LogFormat(int.from_bytes(log.read_bytes()[:4], "big"))
