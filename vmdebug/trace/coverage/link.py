"""The connection to the plugin in QEMU that records coverage."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from vmdebug.arch import Branch
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, StateError, VmError
from vmdebug.trace.coverage import wire
from vmdebug.trace.coverage.wire import Recorded
from vmdebug.trace.plugin import link


class CoverageLink:
    """A connection to the plugin of a VM; a context manager that closes it.

    Args:
        path: The plugin's socket.
        vm: The VM's name, for errors.

    Raises:
        StateError: no plugin listens there.
        VmError: it does not speak this protocol, or has too many clients.
    """

    def __init__(self, path: Path, vm: str) -> None:
        self._vm = vm
        self._socket, self.hello = link.connected(path, vm)
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, ranges: Sequence[tuple[int, int]], jumps: Sequence[Branch], *, keep: bool) -> Recorded:
        """Have the plugin record; it begins when a vCPU next becomes idle or resumes.

        Args:
            ranges: See `wire.layout`.
            jumps: The conditional jumps of the architecture.
            keep: Whether it goes on when this connection is closed.

        Raises:
            StateError: coverage of this VM is being recorded already.
            HostError: there is no memory for it.
        """
        start, size = wire.layout(ranges, jumps, keep=keep)
        try:
            fd = os.memfd_create("vmdebug-coverage", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, size)
                memory = mmap.mmap(fd, size)
                memory[: len(start)] = start
                self._socket.sendmsg([b"c"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            finally:
                os.close(fd)
            answer = self._socket.recv(1)
            if answer != b"a":
                memory.close()
                raise StateError(
                    f"QEMU of {self._vm} records no coverage: {link.refusal(self._socket)}",
                    hint=f"end it with vmdebug cov stop {self._vm}, or with its `with` block",
                )
        except OSError as error:
            raise HostError(f"cannot pass memory to QEMU of {self._vm}: {error.strerror or error}") from error
        return Recorded(memory)

    def wait_ready(self, deadline: Deadline) -> bool:
        """Wait until the plugin records, and return whether it does."""
        while not self._ready and (seconds := deadline.remaining):
            if not select.select([self._socket], [], [], seconds)[0]:
                break
            with contextlib.suppress(OSError):
                notice = self._socket.recv(1)
                if not notice:
                    break
                self._ready = notice == b"r"
        return self._ready

    def recorded(self) -> Recorded | None:
        """Return what is being recorded, also by another client; None if nothing is.

        Raises:
            VmError: the plugin does not answer.
        """
        try:
            self._socket.send(b"m")
            answer, fds, *_ = socket.recv_fds(self._socket, 1, 1)
        except OSError as error:
            raise VmError(f"the trace plugin in QEMU of {self._vm} does not answer: {error}") from error
        if answer != b"m" or not fds:
            return None
        try:
            return Recorded(mmap.mmap(fds[0], os.fstat(fds[0]).st_size))
        finally:
            os.close(fds[0])

    def end(self) -> None:
        """Have the plugin stop recording."""
        with contextlib.suppress(OSError):
            self._socket.send(b"x")

    def close(self) -> None:
        """Close the connection. Recording ends, unless it was begun with `keep`."""
        self._socket.close()
