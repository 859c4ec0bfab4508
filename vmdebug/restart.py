"""Restarts a VM with its name and the present build of its kernel: `vmdebug restart`, `session.restart`."""

from __future__ import annotations

import msgspec

from vmdebug import sources, vm
from vmdebug.deadline import Deadline
from vmdebug.debugger.ownership import VmOwner
from vmdebug.errors import StateError
from vmdebug.guest import LaunchSpec, OwnMachine, RunnerMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.process import ProcessRef
from vmdebug.progress import Report
from vmdebug.vm import Vm, planning, runtime_directory
from vmdebug.vm.launching import Start


def options_of(machine: Vm) -> GuestOptions:
    """Return the options that a VM was started with.

    Raises:
        StateError: they are unknown, or another process owns the VM.
    """
    options = machine.state.spec.asked
    if options is None:
        raise StateError(
            f"{machine.name} cannot be restarted: its state does not have the options it was started with",
            hint=f"an older vmdebug started it; end it and start a new one: vmdebug stop {machine.name}",
        )
    owner = machine.state.owner
    if owner is not None and owner != ProcessRef.me():
        raise StateError(
            f"{machine.name} belongs to process {owner.pid}, and ends with it",
            hint="restart it there: session.restart()",
        )
    return options


def resolve(machine: Vm, *, halt: bool | None = None, report: Report, deadline: Deadline) -> LaunchSpec:
    """Return the spec to restart a VM with the present build of its kernel; the VM keeps running.

    Args:
        machine: The VM.
        halt: Whether to stop at the reset vector; None for the same as before.
        report: Called with each long step.
        deadline: Limit for building the guest.

    Raises:
        StateError: see `options_of`.
        UsageError: the guest no longer exists.
        MismatchError: kernel and symbols are of different builds.
    """
    options = options_of(machine)
    spec = sources.resolve(options, report=report, deadline=deadline)
    wanted = options.halt if halt is None else halt
    made = spec.machine
    if isinstance(made, OwnMachine) and isinstance(before := machine.state.spec.machine, OwnMachine):
        made = msgspec.structs.replace(made, throwaway=before.throwaway)
    return msgspec.structs.replace(spec, name=machine.name, halt=wanted, machine=made)


def prepare(machine: Vm, spec: LaunchSpec, *, report: Report, launch_seconds: float) -> Start:
    """Return how the VM is started again; the VM keeps running.

    Args:
        machine: The VM.
        spec: What `resolve` returned.
        report: Called with each long step.
        launch_seconds: Seconds that this may take.

    Raises:
        HostError: the machine lacks something: QEMU, KVM, space for the files of a VM.
    """
    found = planning.resources(spec, report=report, deadline=Deadline.after(launch_seconds))
    runtime_directory.check_room(machine.rundir, scratch=isinstance(spec.machine, RunnerMachine))
    return Start(resources=found)


def replace(machine: Vm, spec: LaunchSpec, start: Start, *, report: Report, launch_seconds: float) -> Vm:
    """End a VM, and start another one under its name.

    Args:
        machine: The VM.
        spec: What `resolve` returned.
        start: What `prepare` returned.
        report: Called with each long step.
        launch_seconds: Seconds in which QEMU must answer.

    Raises:
        LaunchError: QEMU did not start; the VM is gone.
    """
    bound = machine.state.owner is not None
    machine.stop()
    return vm.launch(spec, bound=bound, report=report, timeout=launch_seconds, start=start)


def attached(machine: Vm) -> str:
    """Return which process has a GDB attached; "" if none has."""
    try:
        with VmOwner.claim(machine.rundir.attach_lock, machine.name):
            return ""
    except StateError as error:
        return error.message.rpartition(": ")[2]
