"""Records a VM: makes the recording's files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmdebug import guest, paths
from vmdebug.errors import HostError
from vmdebug.guest import LaunchSpec, OwnMachine
from vmdebug.recording import files, manifest, store
from vmdebug.recording.manifest import SHIFT, Kept, Manifest
from vmdebug.vm import memfd, qemuargs
from vmdebug.vm.record_log import LogFormat
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import State

_HASHED_BYTES = 1 << 28
"""Bigger files are not hashed when a recording begins."""


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
                shift=_shift(state.spec),
                process=state.qemu,
                files=tuple(_kept(state.spec, self._directory)),
            )
            paths.write_atomically(files.manifest(self._directory), guest.encode(about))
        except OSError as error:
            raise HostError(f"cannot record: {paths.failure(error)}") from error


@contextlib.contextmanager
def recording(spec: LaunchSpec, form: LogFormat | None) -> Iterator[Recorder | None]:
    """Make a recording for a QEMU that is started during the block; it is deleted if the block raises.

    Args:
        spec: What is started; nothing is done unless it is to be recorded.
        form: The format of QEMU's log.

    Raises:
        HostError: the recording cannot be made.
    """
    if spec.record is None or form is None:
        yield None
        return
    store.make(spec.record)
    try:
        yield Recorder(spec.record, form)
    except BaseException:
        shutil.rmtree(spec.record, ignore_errors=True)
        raise


def keep_state(directory: Path, state: int, begin: int) -> None:
    """Keep the state with which a guest begins whose recording has begun.

    Args:
        directory: The recording.
        state: Descriptor of the file with its memory and devices.
        begin: Its instruction count.

    Raises:
        HostError: it cannot be written.
    """
    path = files.state(directory)
    try:
        path.write_bytes(memfd.read(state))
        about = manifest.read(files.manifest(directory))
        kept = (*about.files, _described(path, path.name))
        about = msgspec.structs.replace(about, begin=begin, files=kept)
        paths.write_atomically(files.manifest(directory), guest.encode(about))
    except OSError as error:
        raise HostError(f"cannot record: {paths.failure(error)}") from error


def _shift(spec: LaunchSpec) -> int:
    """Return the shift of a guest; the last -icount decides."""
    given = qemuargs.parse(spec.qemu_args).values("shift", "icount")
    return int(given[-1]) if given else SHIFT


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
