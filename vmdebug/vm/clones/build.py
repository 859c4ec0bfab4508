"""Boots a guest to its shell and saves it, in the form that lets VMs continue from it fastest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vmdebug import addressing
from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, VmError
from vmdebug.guest import LaunchSpec, ReplayMachine, RunnerMachine
from vmdebug.progress import Report, Step
from vmdebug.vm import argv, launching, memfd, qemuargs, rundir, wait_shell
from vmdebug.vm.argv import InitialState
from vmdebug.vm.clones import saved_guest
from vmdebug.vm.clones.saved_guest import SavedGuest
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.planning import Resources
from vmdebug.vm.qemuargs import Options
from vmdebug.vm.template_registry import How

PROOF_SECONDS = 20.0
"""How long the shell of a template's first VM may take to answer; 0.1 s is usual."""

CLONED = "its memory is shared, and each VM maps it copy-on-write"

_OWN_MEMORY = ("m", "numa", "mem-path", "incoming", "loadvm")


class Built(msgspec.Struct, frozen=True):
    """A finished template.

    Args:
        how: How VMs are made from it.
        reason: Why they are not made in a faster way.
        saved: The saved guest; None if each VM boots.
    """

    how: How
    reason: str
    saved: SavedGuest | None = None


def build(
    spec: LaunchSpec,
    resources: Resources,
    *,
    directory: Path | None,
    lost: Callable[[Vm], None] | None,
    report: Report,
    deadline: Deadline,
) -> Built:
    """Boot a guest to its shell, save it, and end it.

    Args:
        spec: The guest.
        resources: What the host has for it.
        directory: Where its memory is kept; None is shared memory.
        lost: See `wait_shell.wait`.
        report: Called with each step that takes long.
        deadline: When to give up.

    Raises:
        UsageError: the spec is wrong.
        HostError: the machine lacks something.
        LaunchError: QEMU did not start.
        VmError: the guest's shell does not answer.
        DeadlineError: it took too long. In all these cases nothing is left.
    """
    if reason := obstacle(spec) or _on_bridge(spec):
        return Built("boot", reason)
    lacking = memfd.shortage(saved_guest.memory_mib(spec), directory)
    with contextlib.ExitStack() as files:
        file = ram = None if lacking else memfd.closed_by(files, saved_guest.new_ram(spec, directory))
        report(Step("booting the template", note=spec.name))
        try:
            with _booted(spec, resources, ram, lost, deadline) as vm:
                if ram is not None and not saved_guest.can_ignore_shared(vm, deadline=deadline):
                    ram, lacking = None, f"this QEMU has no migration capability {saved_guest.IGNORE_SHARED}"
                whole = SavedGuest(
                    spec=spec,
                    resources=resources,
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
    """Return why a guest cannot be saved; "" if there is no known reason."""
    if isinstance(spec.machine, RunnerMachine):
        return "the guest of a NixOS VM runner has a disk, which can have only one writer"
    if isinstance(spec.machine, ReplayMachine) or spec.record is not None:
        return "it is recorded or replayed, which a copy would not be"
    for share in spec.shared:
        return f"the directory {share.directory} is shared with this machine"
    if spec.root is not None and spec.root.keep:
        return f"the root image {spec.root.location} is kept, and can have only one writer"
    if spec.machine.disk is not None:
        return (
            f"its changes to the disk {spec.machine.disk} are not copied with its memory"
            if spec.machine.throwaway
            else f"the disk {spec.machine.disk} can have only one writer"
        )
    return _obstacle_in(qemuargs.parse(spec.qemu_args))


def _on_bridge(spec: LaunchSpec) -> str:
    """Return why a guest cannot be a template; a clone of a running VM can get other addresses."""
    bridges = [nic.name for nic in spec.nics if nic.kind == "bridge"]
    return f"its addresses on the bridge {bridges[0]} are its own" if bridges else ""


def _obstacle_in(given: Options) -> str:
    for option in given.disks():
        return f"the QEMU argument {option.word} attaches a disk, which can have only one writer"
    for option in given.named(*_OWN_MEMORY, *argv.MACHINE):
        if option.name in _OWN_MEMORY or "memory-backend" in option.properties:
            return f"the QEMU argument {option.word} defines its memory"
    for option in given.unread():
        return (
            f"the QEMU argument {option.word} names a file that vmdebug does not read; it may contain a disk"
        )
    return ""


class _RefusedError(VmError):
    """QEMU cannot save or load the state of the guest; the guest itself works."""


@contextlib.contextmanager
def _booted(
    spec: LaunchSpec,
    resources: Resources,
    ram: int | None,
    lost: Callable[[Vm], None] | None,
    deadline: Deadline,
) -> Iterator[Vm]:
    named = msgspec.structs.replace(spec, name=_name(spec), nics=addressing.unplugged(spec.nics))
    fds = () if ram is None else (ram,)
    start = Start(initial=InitialState(ram=ram, shared=True), fds=fds, resources=resources)
    with launching.launch(
        named, bound=True, timeout=deadline.left(launching.ANSWER), exact_name=False, start=start
    ) as vm:
        wait_shell.wait(vm, copy=False, lost=lost, deadline=deadline)
        yield vm


def _save(vm: Vm, whole: SavedGuest, deadline: Deadline) -> None:
    try:
        saved_guest.keep(vm, whole, deadline=deadline)
    except GuestDiedError:
        raise
    except VmError as error:
        raise _RefusedError(f"its state cannot be saved: {error.message}") from error


def _prove(built: Built, deadline: Deadline) -> None:
    """Start a first VM from it, because QEMU cannot load the state of some devices that it saves."""
    if built.saved is None:
        return
    until = deadline.at_most(PROOF_SECONDS)
    name = _name(built.saved.spec)
    try:
        unplugged = addressing.unplugged(built.saved.spec.nics)
        with saved_guest.start(built.saved, name=name, nics=unplugged, bound=True, deadline=until) as vm:
            wait_shell.wait(vm, copy=True, deadline=until)
    except VmError as error:
        raise _RefusedError(f"its state can be saved but not loaded: {error.message}") from error


def _name(spec: LaunchSpec) -> str:
    """Return the name for the VM that makes a template; a name has at most 63 characters."""
    return f"{spec.name[:50]}-template"


def _place(directory: Path | None, lacking: str) -> Path | None:
    """Return the directory for the state: if it contains the RAM, one on a disk, which has more space."""
    return rundir.disk_directory() if lacking else directory
