"""Starts the virtiofsd of each directory that a guest gets over virtiofs.

It ends when QEMU closes the connection, however QEMU ends. Until QEMU has connected, a guardian of its own
ends it with this process.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.guest import LaunchSpec, Share
from vmdebug.roots import virtiofsd
from vmdebug.vm import children, directories
from vmdebug.vm.guardian import END_SECONDS, Guardian
from vmdebug.vm.rundir import RunDir


@contextlib.contextmanager
def running(spec: LaunchSpec, directory: RunDir) -> Iterator[None]:
    """Start them for a QEMU that is started and connects during the block; they end if the block raises.

    Args:
        spec: What is started.
        directory: Its run directory.

    Raises:
        HostError: one cannot be started.
    """
    guardians: list[Guardian] = []
    try:
        for number, share in enumerate(spec.shared):
            if directories.served(share):
                guardians.append(Guardian.start())
                _start(share, number, directory, guardians[-1])
        yield
    except BaseException:
        for each in guardians:
            each.end(Deadline.after(END_SECONDS))
        children.reap()
        raise
    for each in guardians:
        each.release()


def _start(share: Share, number: int, directory: RunDir, guardian: Guardian) -> None:
    server = virtiofsd.find(share.directory, read_only=share.read_only)
    if server is None:
        raise HostError(
            f"virtiofsd, which serves {share.directory} to the guest, no longer works here",
            hint="install virtiofsd, or start the guest anew: it then gets its directories over 9p",
        )
    with socket.socket(socket.AF_UNIX) as listening:
        # QEMU connects to the path; the descriptor is virtiofsd's alone, so that its end is noticed.
        listening.bind(os.fspath(directory.file_server(number)))
        listening.listen(1)
        fd = listening.fileno()
        words = server.argv(share.directory, fd, read_only=share.read_only)
        children.adopt(guardian.spawn(words, env=os.environ, log=directory.qemu_log, pass_fds=[fd]))
