"""Booting a guest to its shell and saving it there, in the fastest way to continue from that it allows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, VmError
from vmdebug.guest import LaunchSpec, RunnerMachine
from vmdebug.progress import Report, Step
from vmdebug.vm import argv, launching, memfd, qemuargs, rundir, shellup
from vmdebug.vm.argv import Origin
from vmdebug.vm.clones import saved_guest
from vmdebug.vm.clones.saved_guest import SavedGuest
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.planning import Means
from vmdebug.vm.qemuargs import Options
from vmdebug.vm.template_registry import How

PROOF_SECONDS = 20.0
"""How long the first VM of a template may take to its shell; 0.1 s is usual."""

CLONED = "its memory is shared, and each VM maps it copy-on-write"

_OWN_MEMORY = ("m", "numa", "mem-path", "incoming", "loadvm")


class Built(msgspec.Struct, frozen=True):
    """What a template consists of.

    Args:
        how: How VMs are made of it.
        reason: Why not in a faster way.
        saved: The saved guest; None where each VM boots.
    """

    how: How
    reason: str
    saved: SavedGuest | None = None


def build(
    spec: LaunchSpec,
    means: Means,
    *,
    directory: Path | None,
    lost: Callable[[Vm], None] | None,
    report: Report,
    deadline: Deadline,
) -> Built:
    """Boot a guest to its shell and save it; the VM that booted has ended afterwards.

    Args:
        spec: The guest.
        means: What the host has for it.
        directory: Where its memory is kept; None is shared memory.
        lost: See `shellup.come`.
        report: Called with each step that takes long.
        deadline: When to give up.

    Raises:
        UsageError: the spec is wrong.
        HostError: the machine lacks something.
        LaunchError: QEMU did not start.
        VmError: the guest's shell does not answer.
        DeadlineError: it took too long. In all these cases nothing is left.
    """
    if reason := obstacle(spec):
        return Built("boot", reason)
    lacking = memfd.shortage(saved_guest.memory_mib(spec), directory)
    with contextlib.ExitStack() as files:
        file = ram = None if lacking else memfd.closed_by(files, saved_guest.new_ram(spec, directory))
        report(Step("booting the template", note=spec.name))
        try:
            with _booted(spec, means, ram, lost, deadline) as vm:
                if ram is not None and not saved_guest.can_ignore_shared(vm, deadline=deadline):
                    ram, lacking = None, f"this QEMU has no migration capability {saved_guest.IGNORE_SHARED}"
                whole = SavedGuest(
                    spec=spec,
                    means=means,
                    ram=ram,
                    state=memfd.closed_by(files, memfd.create("state", _place(directory, lacking))),
                    log=memfd.closed_by(files, memfd.create("log")),
                    name=spec.name,
                )
                _save(vm, whole, deadline)
            built = Built("load", lacking, whole) if lacking else Built("clone", CLONED, whole)
            _prove(built, deadline)
        except _RefusedError as refused:
            return Built("boot", refused.message)
        files.pop_all()
    if file is not None and ram is None:
        os.close(file)
    return built


def obstacle(spec: LaunchSpec) -> str:
    """Return why a guest cannot be saved as a whole; "" where nothing is known against it."""
    if isinstance(spec.machine, RunnerMachine):
        return "a runner's guest has a disk and mounted 9p shares, which no copy can have"
    if spec.machine.disk is not None and spec.machine.throwaway:
        return f"what it writes to the disk {spec.machine.disk} would not be copied with its memory"
    if spec.machine.disk is not None:
        return f"the disk {spec.machine.disk} has one writer at a time"
    return _obstacle_in(qemuargs.parse(spec.qemu_args))


def _obstacle_in(given: Options) -> str:
    for option in given.disks():
        return f"QEMU's argument {option.word} gives it a disk, which has one writer at a time"
    for option in given.named(*_OWN_MEMORY, *argv.MACHINE):
        if option.name in _OWN_MEMORY or "memory-backend" in option.properties:
            return f"QEMU's argument {option.word} says where its memory is"
    for option in given.unread():
        return f"QEMU's argument {option.word} names a file that vmdebug does not read: it may name a disk"
    return ""


class _RefusedError(VmError):
    """The guest runs, and QEMU cannot save or load its state."""


@contextlib.contextmanager
def _booted(
    spec: LaunchSpec, means: Means, ram: int | None, lost: Callable[[Vm], None] | None, deadline: Deadline
) -> Iterator[Vm]:
    named = msgspec.structs.replace(spec, name=_name(spec))
    fds = () if ram is None else (ram,)
    start = Start(origin=Origin(ram=ram, shared=True), fds=fds, means=means)
    with launching.launch(
        named, bound=True, timeout=deadline.left(launching.ANSWER), exact_name=False, start=start
    ) as vm:
        shellup.come(vm, copy=False, lost=lost, deadline=deadline)
        yield vm


def _save(vm: Vm, whole: SavedGuest, deadline: Deadline) -> None:
    try:
        saved_guest.save(vm, whole.state, shared=whole.ram is not None, deadline=deadline)
    except GuestDiedError:
        raise
    except VmError as error:
        raise _RefusedError(f"its state cannot be saved: {error.message}") from error
    memfd.write(whole.log, vm.rundir.console_log.read_bytes())


def _prove(built: Built, deadline: Deadline) -> None:
    """Start a first VM of it: QEMU saves the state of some devices that it cannot load."""
    if built.saved is None:
        return
    until = deadline.at_most(PROOF_SECONDS)
    name = _name(built.saved.spec)
    try:
        with saved_guest.start(built.saved, name=name, bound=True, deadline=until) as vm:
            shellup.come(vm, copy=True, deadline=until)
    except VmError as error:
        raise _RefusedError(f"its state can be saved but not loaded: {error.message}") from error


def _name(spec: LaunchSpec) -> str:
    """Return the name of the VMs that make a template; a name has at most 63 characters."""
    return f"{spec.name[:50]}-template"


def _place(directory: Path | None, lacking: str) -> Path | None:
    """Return where the state is kept: with the RAM in it a disk, which may have room for that."""
    return rundir.disk_directory() if lacking else directory
