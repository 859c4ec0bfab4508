"""Waits for a file to grow, with inotify(7), which Python's standard library lacks.

It calls two functions of libc. The packages on PyPI that wrap them run ldconfig or a compiler to find libc.
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


class Inotify:
    """Notifies when a file has been written to; a context manager.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def __enter__(self) -> Self:
        """Start watching.

        Raises:
            OSError: the file does not exist, or the user has too many watches.
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
        """Return a descriptor that is readable when the file has grown since `discard`."""
        return self._fd

    def discard(self) -> None:
        """Discard the notifications so far; call it before reading the file."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _EVENTS_BYTES):
                pass

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for the file to grow, and return whether it has grown since `discard`."""
        return bool(wait_ready(self._fd, seconds=seconds))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
