"""One GDB process with its pipes: its start, its bytes in and out, and its end."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Self

from vmdebug import process

_READ_BYTES = 1 << 16


class GdbProcess:
    """GDB's process, its pipes, and an eventfd that wakes the thread that reads them.

    Args:
        pid: Its process id.
        kill: Ends it by force; None for a GDB of another process.
        stdin: The pipe for commands.
        stdout: The pipe for answers.
        stderr: The other output of GDB, and of scripts in it.
    """

    @classmethod
    def start(
        cls, command: Sequence[str | os.PathLike[str]], *, env: Mapping[str, str] | None = None
    ) -> Self:
        """Start GDB. It exits with this process: it exits at the end of its input, even while the guest runs.

        Args:
            command: See `startup.mi_argv`.
            env: Its complete environment; None: that of this process.

        Raises:
            HostError: it cannot be started.
        """
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        try:
            # In a session of its own, GDB does not receive the terminal's Ctrl-C or hangup.
            child = process.start(
                command, env=env, stdin=process.PIPE, stdout=process.PIPE, stderr=stderr, session=True
            )
        except BaseException:
            stderr.close()
            raise
        assert child.stdin is not None  # noqa: S101 - for the type checker: both are pipes
        assert child.stdout is not None  # noqa: S101
        return cls(child.pid, lambda: process.end_group(child), child.stdin, child.stdout, stderr)

    @classmethod
    def join(cls, pid: int, terminal: int) -> Self:
        """Use a GDB of another process.

        Args:
            pid: Its process id.
            terminal: A terminal on which it speaks MI; `close` closes it.
        """
        stdin, stdout = os.fdopen(os.dup(terminal), "wb"), os.fdopen(terminal, "rb")
        return cls(pid, None, stdin, stdout, io.BytesIO())

    def __init__(
        self,
        pid: int,
        kill: Callable[[], None] | None,
        stdin: IO[bytes],
        stdout: IO[bytes],
        stderr: IO[bytes],
    ) -> None:
        self.pid = pid
        self._kill = kill
        self._streams = (stdin, stdout, stderr)
        self._stderr = stderr
        self._stdin, self._stdout = stdin.fileno(), stdout.fileno()
        os.set_blocking(self._stdin, False)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._writable = select.poll()
        self._writable.register(self._stdin, select.POLLOUT)
        self._readable = select.poll()
        self._readable.register(self._stdout, select.POLLIN)
        self._readable_or_woken = select.poll()
        self._readable_or_woken.register(self._stdout, select.POLLIN)
        self._readable_or_woken.register(self._wake, select.POLLIN)

    @property
    def ours(self) -> bool:
        """Whether this process has started it, and ends it."""
        return self._kill is not None

    def write(self, data: bytes) -> bytes:
        """Write as much as the pipe accepts, and return the rest; b"" also if GDB has ended."""
        try:
            return data[os.write(self._stdin, data) :]
        except BlockingIOError:
            return data
        except OSError:  # EPIPE; of a terminal, EIO
            return b""  # GDB has ended, which the end of its output shows

    def wait_writable(self, seconds: float) -> None:
        """Wait at most `seconds` until the pipe accepts more."""
        self._writable.poll(seconds * 1000)

    def read(self, seconds: float) -> bytes | None:
        """Wait at most `seconds` for output, and return it.

        Returns:
            The output; b"" at its end, None if there was none in that time.
        """
        if not self._readable.poll(seconds * 1000):
            return None
        try:
            return os.read(self._stdout, _READ_BYTES)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""  # the end of a terminal

    def wait_until_woken(self) -> bool:
        """Wait for output, or for a call of `wake`; return whether `wake` was called."""
        self._readable_or_woken.poll()
        try:
            return os.eventfd_read(self._wake) > 0
        except BlockingIOError:
            return False

    def wake(self) -> None:
        """End the present or the next `wait_until_woken`."""
        os.eventfd_write(self._wake, 1)

    def stderr_text(self) -> str:
        """Return the text on stderr so far."""
        if self._stderr.closed:
            return ""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def kill(self) -> None:
        """End GDB by force, unless it is of another process."""
        if self._kill is not None:
            self._kill()

    def close(self) -> None:
        """Close the pipes and the eventfd."""
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()
        os.close(self._wake)
