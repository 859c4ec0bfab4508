"""The end of the line to one GDB, as the transport holds it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import IO


class End:
    """GDB's process: its pipes, the poke for the idle reader, how to kill it.

    Args:
        pid: Its process id.
        kill: Kills it; None for one that is somebody else's.
        stdin: Where it reads commands.
        stdout: Where it answers.
        stderr: What it, or a script in it, wrote besides.
    """

    def __init__(
        self,
        pid: int,
        kill: Callable[[], None] | None,
        stdin: IO[bytes],
        stdout: IO[bytes],
        stderr: IO[bytes],
    ) -> None:
        self.pid = pid
        self.kill = kill
        self.stdin = stdin
        self.stdout = stdout
        self._stderr = stderr
        self.poke = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def give_way(self) -> None:
        """Poke the idle reader."""
        os.eventfd_write(self.poke, 1)

    def asked_to_give_way(self) -> bool:
        """Return whether it was poked since the last time."""
        try:
            return os.eventfd_read(self.poke) > 0
        except BlockingIOError:
            return False

    def stderr_text(self) -> str:
        """Return what was written to stderr so far."""
        if self._stderr.closed:
            return ""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def close(self) -> None:
        """Close all of it."""
        for stream in (self.stdin, self.stdout, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()
        os.close(self.poke)
