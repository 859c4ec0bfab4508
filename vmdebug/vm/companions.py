"""Starts the processes that run beside a QEMU, and end with it.

- virtiofsd serves each directory that a guest gets over virtiofs; it ends when QEMU closes the connection.
- The relay types into a recorded guest; see `record_relay`.
- The waker wakes the QEMU of a replay; see `replay_waker`.

Until QEMU runs, each has a guardian of its own, which ends it with this process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmdebug import arch as arches
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.guest import LaunchSpec, ReplayMachine, Share
from vmdebug.recording import files
from vmdebug.roots import virtiofsd
from vmdebug.vm import children, directories, recorded, runtime_directory
from vmdebug.vm.guardian import END_SECONDS, Guardian
from vmdebug.vm.record_relay import Facts, Wired
from vmdebug.vm.rundir import RunDir

_BACKLOG = 4

_LINE_STATUS = 5
"""Offset of the register "line status" of an 8250."""

_PORTS = (0x3F8, 0x2F8, 0x3E8, 0x2E8)
"""I/O ports of the serial ports of a PC, by number; see isa_serial_io of QEMU's hw/char/serial-isa.c."""


@contextlib.contextmanager
def running(spec: LaunchSpec, directory: RunDir) -> Iterator[None]:
    """Start those of a QEMU that is started during the block; they end if the block raises.

    Args:
        spec: What is started. If it is to be recorded, the recording's files exist, and are removed if this
            process ends before the block does.
        directory: Its run directory.

    Raises:
        HostError: one cannot be started.
    """
    with contextlib.ExitStack() as guarded:
        if isinstance(spec.machine, ReplayMachine):
            _start_waker(directory, guarded.enter_context(_guardian()))
        elif spec.record is not None:
            guardian = guarded.enter_context(_guardian())
            guardian.remove(spec.record)
            _start_relay(spec, spec.record, directory, guardian)
        for number, share in enumerate(spec.shared):
            if directories.served(share):
                _start_file_server(share, number, directory, guarded.enter_context(_guardian()))
        yield


@contextlib.contextmanager
def _guardian() -> Iterator[Guardian]:
    """Yield a guardian for a process that ends with QEMU; it ends at once if the block raises."""
    guardian = Guardian.start()
    try:
        yield guardian
    except BaseException:
        guardian.end(Deadline.after(END_SECONDS))
        children.reap()
        raise
    guardian.release()


def _start_file_server(share: Share, number: int, directory: RunDir, guardian: Guardian) -> None:
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


def _start_waker(directory: RunDir, guardian: Guardian) -> None:
    words = (sys.executable, "-m", "vmdebug.vm.replay_waker", str(directory.relay))
    children.adopt(guardian.spawn(words, env=_environment(), log=directory.qemu_log))


def _start_relay(spec: LaunchSpec, recording: Path, directory: RunDir, guardian: Guardian) -> None:
    _, second = recorded.second(arches.by_name(spec.kernel.arch))
    sockets = (directory.console, directory.shell_line.socket)
    with contextlib.ExitStack() as listening:
        lines = []
        for name, path, number in zip(files.LINES, sockets, (0, second), strict=True):
            listener = listening.enter_context(socket.socket(socket.AF_UNIX))
            try:
                listener.bind(os.fspath(path))
            except OSError as error:
                raise runtime_directory.host_error(f"make the socket {path}", error) from error
            listener.listen(_BACKLOG)
            line = files.line(recording, name)
            lines.append(
                Wired(
                    listener=listener.fileno(),
                    input=str(files.typed(recording, name)),
                    output=f"{line}.out",
                    status=_PORTS[number] + _LINE_STATUS,
                )
            )
        facts = Facts(monitor=str(directory.relay), lines=tuple(lines))
        words = (sys.executable, "-m", "vmdebug.vm.record_relay", msgspec.json.encode(facts).decode())
        fds = [each.listener for each in lines]
        children.adopt(guardian.spawn(words, env=_environment(), log=directory.qemu_log, pass_fds=fds))


def _environment() -> dict[str, str]:
    """Return the environment in which Python finds this vmdebug."""
    here = str(Path(__file__).parents[2])
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{before}" if before else here}
