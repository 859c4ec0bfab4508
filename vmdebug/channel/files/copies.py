"""`put`, `get` and `read_file`, which a VM and a session offer alike."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from vmdebug.deadline import COPY_SECONDS, Deadline
from vmdebug.progress import Report, silent

if TYPE_CHECKING:
    from vmdebug.channel.guest_shell import GuestShell


class Copies(ABC):
    """Copies between this machine and a guest."""

    @abstractmethod
    def _copying_shell(self, call: str) -> GuestShell:
        """Return the guest's shell.

        Args:
            call: The name of the method that needs it, for the error.

        Raises:
            StateError: GDB has stopped the guest.
        """

    def put(
        self,
        source: os.PathLike[str] | str | bytes,
        destination: str,
        *,
        timeout: float = COPY_SECONDS,
        report: Report = silent,
    ) -> None:
        """Copy a file or a directory into the guest, which must be running.

        The copy has its name only when it is complete. Modes and times (whole seconds) are kept.

        Args:
            source: A file or a directory; or the content of a file, as bytes.
            destination: The path in the guest; a directory that exists there gets a file under its own name,
                and is merged with a directory of that name. With a slash at its end it must be a directory.
            timeout: Seconds to wait, including the rest of a boot.
            report: Called during copies that take over 2 s.

        Raises:
            UsageError: the source does not exist.
            HostError: the source cannot be read.
            VmError: the guest cannot write it: its disk is full, there is no such directory.
            StateError: the guest does not run.
            GuestDiedError: the guest panicked or exited.
            DeadlineError: it took too long.
        """
        from vmdebug.channel.files.put import put  # noqa: PLC0415 - only imported when needed

        deadline = Deadline.after(timeout)
        put(self._copying_shell("put"), [source], destination, report=report, deadline=deadline)

    def get(
        self,
        source: str,
        destination: os.PathLike[str] | str,
        *,
        timeout: float = COPY_SECONDS,
        report: Report = silent,
    ) -> None:
        """Copy a file or a directory out of the guest, which must be running.

        Args:
            source: The path in the guest.
            destination: The path of the copy, or a directory that gets it under its own name. With a slash at
                its end it must be a directory.
            timeout: Seconds to wait, including the rest of a boot.
            report: Called during copies that take over 2 s.

        Raises:
            UsageError: the destination is wrong.
            HostError: the destination cannot be written.
            VmError: there is no such file in the guest.
            VmdebugError: as `put` does.
        """
        from vmdebug.channel.files.get import get  # noqa: PLC0415 - only imported when needed

        directory = os.fspath(destination).endswith("/")
        shell, deadline = self._copying_shell("get"), Deadline.after(timeout)
        get(shell, [source], Path(destination), report=report, deadline=deadline, directory=directory)

    def read_file(self, path: str, *, timeout: float = COPY_SECONDS, report: Report = silent) -> bytes:
        """Return the content of a file in the guest, which must be running.

        Args:
            path: The path in the guest; a file of /proc or /sys too.
            timeout: Seconds to wait, including the rest of a boot.
            report: Called while reading takes over 2 s.

        Raises:
            VmError: there is no such file in the guest, or it is a directory.
            VmdebugError: as `put` does.
        """
        from vmdebug.channel.files.get import get  # noqa: PLC0415 - only imported when needed

        data = bytearray()
        shell, deadline = self._copying_shell("read_file"), Deadline.after(timeout)
        get(shell, [path], data.extend, report=report, deadline=deadline)
        return bytes(data)
