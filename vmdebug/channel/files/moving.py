"""What `put` and `get` share: progress, the scripts for the guest, their errors, and names."""

from __future__ import annotations

import time
from pathlib import Path

from vmdebug.channel.shell import ExecResult
from vmdebug.errors import VmdebugError, VmError
from vmdebug.progress import Report, Step

QUIET_SECONDS = 2.0
"""How long a copy takes before it begins to report progress."""

_MIB = 1 << 20
_PREFIX = "vmdebug: "
_FULL = ("No space left on device", "Disk quota exceeded")
_HERE = Path(__file__).parent


class Progress:
    """Counts the bytes of a copy, and reports them if it takes long.

    Args:
        report: Receives the steps.
        what: The name of what is copied.
    """

    def __init__(self, report: Report, what: str) -> None:
        self.total: int | None = None
        """Bytes in total; None while unknown."""
        self.done = 0
        """Bytes so far."""
        self._report = report
        self._what = f"copying {what}"
        self._from = time.monotonic() + QUIET_SECONDS

    def __call__(self, count: int) -> None:
        """Count bytes."""
        self.done += count
        if time.monotonic() >= self._from:
            total = None if self.total is None else max(1, -(-self.total // _MIB))
            self._report(Step(self._what, done=self.done // _MIB, total=total, note="MiB"))


def script(name: str) -> str:
    """Return the text of a script in this directory."""
    return (_HERE / name).read_text()


def last_name(path: str) -> str:
    """Return the name that a copy of a path gets in a directory; "" if the path ends in `.` or `..`."""
    name = path.rstrip("/").rpartition("/")[2]
    return "" if name in ("", ".", "..") else name


def failure(done: ExecResult, where: str) -> VmdebugError:
    """Return the error for a script that failed in the guest.

    Args:
        done: How it ended.
        where: The path in the guest.
    """
    text = done.stderr.strip()
    if any(words in text for words in _FULL):
        return VmError(
            f"the guest's file system is full: {where} is not copied",
            hint="nothing is left of the copy; make room in the guest, or copy to another file system there:"
            " `df -h` in the guest lists them",
            detail=text,
        )
    own = [line.removeprefix(_PREFIX) for line in text.splitlines() if line.startswith(_PREFIX)]
    if own:
        return VmError(f"in the guest, {own[-1]}", hint="nothing is left of the copy")
    if "tar: not found" in text or "tar: command not found" in text:
        return VmError(
            "the guest has no tar, which copies directories", hint="copy the files one at a time", detail=text
        )
    return VmError(
        f"the guest cannot copy {where}: its shell ended with status {done.status}",
        hint="nothing is left of the copy",
        detail=text,
    )
