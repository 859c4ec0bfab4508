"""Follows a console's log for kernel trouble; see `trouble`."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from vmdebug import process
from vmdebug.channel.log import kept
from vmdebug.channel.log.inotify import Inotify
from vmdebug.channel.log.trouble import Scanner, Trouble
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, StateError

QUIET_SECONDS = 0.25
"""Seconds without another line after which a splat counts as complete: a panic may stop the guest within
it."""

_CHUNK = 1 << 16
_TAIL = 4096


class Watcher:
    """Follows a console's log; a context manager. The log may be removed meanwhile.

    Trouble is reported at its headline, so that a test can be stopped at once; its text is complete after
    `settle`.

    Args:
        log: The console's log.
        stamped: See `Scanner`.
    """

    def __init__(self, log: Path, *, stamped: bool | None = None) -> None:
        self.log = log
        self._scanner = Scanner(stamped=stamped)
        self._reported = 0
        self._held = contextlib.ExitStack()
        self._open: tuple[IO[bytes], Inotify] | None = None

    def __enter__(self) -> Self:
        """Open the log.

        Raises:
            FileNotFoundError: there is no log.
        """
        with contextlib.ExitStack() as held:
            stream = held.enter_context(self.log.open("rb", buffering=0))
            self._open = stream, held.enter_context(Inotify(self.log))
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = None
        self._held.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when the log has grown since the last `poll`."""
        return self._opened[1].fileno()

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """All trouble that was found up to the last `poll`."""
        return self._scanner.troubles

    def poll(self) -> tuple[Trouble, ...]:
        """Read the log's new text, and return the new trouble."""
        stream, inotify = self._opened
        inotify.discard()
        while data := kept.read_next(stream.fileno(), _CHUNK):
            self._scanner.feed(data)
        found = self._scanner.troubles
        new, self._reported = found[self._reported :], len(found)
        return new

    def wait(self, deadline: Deadline) -> tuple[Trouble, ...]:
        """Wait for new trouble, and return it.

        Raises:
            DeadlineError: there was none; the detail has the end of the log.
        """
        stream, inotify = self._opened
        while not (new := self.poll()):
            if deadline.passed:
                end = os.pread(stream.fileno(), _TAIL, max(0, stream.tell() - _TAIL))
                detail = process.tail(end.decode(errors="replace"))
                raise deadline.error(f"kernel trouble in {self.log}", detail=detail)
            inotify.wait(max(0.0, deadline.at - time.monotonic()))
        return new

    def settle(self, deadline: Deadline) -> tuple[Trouble, ...]:
        """Wait until all splats are complete, or do not continue, and return all trouble.

        Args:
            deadline: When to stop waiting.
        """
        self.poll()
        with contextlib.suppress(DeadlineError):
            while self._scanner.growing:
                seconds = min(QUIET_SECONDS, deadline.left("the kernel to finish"))
                if not self._opened[1].wait(seconds):
                    break
                self.poll()
        return self._scanner.troubles

    @property
    def _opened(self) -> tuple[IO[bytes], Inotify]:
        if self._open is None:
            raise StateError("the log is not open", hint="use the watcher inside `with`")
        return self._open
