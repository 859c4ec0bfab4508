"""Waiting for a file to grow: inotify(7), of which Python's standard library has nothing.

Two calls of libc's. The packages on PyPI that wrap them run ldconfig or a compiler to find libc first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from vmdebug.deadline import wait_ready

_IN_MODIFY = 0x2  # <sys/inotify.h>
_EVENTS_BYTES = 4096


class Growth:
    """Tells when a file has been written to, as a context manager.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def __enter__(self) -> Self:
        """Begin to watch it.

        Raises:
            OSError: it is not there, or the user has too many watches.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        with contextlib.ExitStack() as held:
            fd = _checked(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
            held.callback(os.close, fd)
            _checked(libc.inotify_add_watch(fd, os.fsencode(self.path), _IN_MODIFY))
            held.pop_all()
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        self._fd = -1

    def fileno(self) -> int:
        """Return a descriptor that is readable from the file's next growth on, until `seen`."""
        return self._fd

    def seen(self) -> None:
        """Forget the growth up to now: call it before the file is read."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _EVENTS_BYTES):
                pass

    def wait(self, seconds: float) -> bool:
        """Return whether it has grown since `seen`, at the latest after `seconds`."""
        return bool(wait_ready(self._fd, seconds=seconds))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
