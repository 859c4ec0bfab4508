"""Records a VM: makes the recording's files, and starts the process that types into the guest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmdebug import arch as arches
from vmdebug import guest, paths
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.guest import LaunchSpec, OwnMachine, ReplayMachine
from vmdebug.recording import files, store
from vmdebug.recording.manifest import Kept, Manifest
from vmdebug.vm import children, recorded, rundir
from vmdebug.vm.guardian import END_SECONDS, Guardian
from vmdebug.vm.record_log import LogFormat
from vmdebug.vm.record_relay import Facts, Wired
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import State

_HASHED_BYTES = 1 << 28
"""Bigger files are not hashed when a recording begins."""

_CHUNK = 1 << 20

_BACKLOG = 4

_LINE_STATUS = 5
"""Offset of the register "line status" of an 8250."""

_PORTS = (0x3F8, 0x2F8, 0x3E8, 0x2E8)
"""I/O ports of the serial ports of a PC, by number; see isa_serial_io of QEMU's hw/char/serial-isa.c."""


class Recorder:
    """A recording that begins."""

    def __init__(self, directory: Path, form: LogFormat) -> None:
        self._directory = directory
        self._form = form

    def begun(self, state: State, rundir: RunDir, qemu: Path, version: str) -> None:
        """Describe the recording, once QEMU runs.

        Args:
            state: The VM.
            rundir: Its run directory.
            qemu: The emulator.
            version: Its version.

        Raises:
            HostError: the description cannot be written.
        """
        try:
            about = Manifest(
                id=uuid.uuid4().hex,
                created_at=state.started_at,
                spec=state.spec,
                argv=state.argv,
                run=rundir.path,
                qemu=version,
                qemu_file=qemu,
                log_version=self._form.version,
                process=state.qemu,
                files=tuple(_kept(state.spec, self._directory)),
            )
            paths.write_atomically(files.manifest(self._directory), guest.encode(about))
        except OSError as error:
            raise HostError(f"cannot record: {paths.failure(error)}") from error


@contextlib.contextmanager
def recording(spec: LaunchSpec, directory: RunDir, form: LogFormat | None) -> Iterator[Recorder | None]:
    """Make a recording for a QEMU that is started during the block; it is deleted if the block raises.

    For a replay, start the process that wakes QEMU.

    Args:
        spec: What is started; nothing is done unless it is to be recorded.
        directory: Its run directory.
        form: The format of QEMU's log.

    Raises:
        HostError: the recording cannot be made.
    """
    if isinstance(spec.machine, ReplayMachine):
        with _ended_on_failure() as guardian:
            words = (sys.executable, "-m", "vmdebug.vm.replay_waker", str(directory.relay))
            children.adopt(guardian.spawn(words, env=_environment(), log=directory.qemu_log))
            yield None
        return
    if spec.record is None or form is None:
        yield None
        return
    store.make(spec.record)
    try:
        with _ended_on_failure() as guardian:
            guardian.remove(spec.record)
            _start_relay(spec, spec.record, directory, guardian)
            yield Recorder(spec.record, form)
    except BaseException:
        shutil.rmtree(spec.record, ignore_errors=True)
        raise


@contextlib.contextmanager
def _ended_on_failure() -> Iterator[Guardian]:
    """Yield a guardian for a process that ends with QEMU; it ends at once if the block raises."""
    guardian = Guardian.start()
    try:
        yield guardian
    except BaseException:
        guardian.end(Deadline.after(END_SECONDS))
        children.reap()
        raise
    guardian.release()


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
                raise rundir.host_error(f"make the socket {path}", error) from error
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


def _kept(spec: LaunchSpec, directory: Path) -> Iterator[Kept]:
    """Yield the files of the guest; those that a build may replace are copied into the recording."""
    machine = spec.machine
    assert isinstance(machine, OwnMachine)  # noqa: S101 - `refusal` has refused the others
    for name, path in (
        ("kernel", machine.unified or spec.kernel.image),
        ("initrd", machine.initrd),
    ):
        if path is not None:
            shutil.copyfile(path, directory / name)
            yield _described(path, name)
    if spec.kernel.vmlinux is not None:
        # make replaces it by a new file, so a link keeps this one, without a copy.
        linked = _link(spec.kernel.vmlinux, directory / "vmlinux")
        yield _described(spec.kernel.vmlinux, "vmlinux" if linked else "")
    root = spec.root.location if spec.root is not None and spec.root.share is None else None
    for path, writable in ((machine.modules, False), (root, False), (machine.disk, True)):
        if path is not None:
            yield _described(path, "", writable=writable)


def _link(path: Path, to: Path) -> bool:
    try:
        os.link(path.resolve(), to)
    except OSError:  # on another file system
        return False
    return True


def _described(path: Path, name: str, *, writable: bool = False) -> Kept:
    size = path.stat().st_size
    digest = ""
    if size <= _HASHED_BYTES:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Kept(original=path, name=name, bytes=size, sha256=digest, writable=writable)
