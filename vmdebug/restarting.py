"""The same VM once more, with its kernel as it is now: `vmdebug restart`, and `session.restart`."""

from __future__ import annotations

import os

import msgspec

from vmdebug import sources, vm
from vmdebug.deadline import Deadline
from vmdebug.debugger.ownership import VmOwner
from vmdebug.errors import StateError
from vmdebug.guest import GuestOptions, LaunchSpec, OwnMachine
from vmdebug.process import ProcessRef
from vmdebug.progress import Report
from vmdebug.vm import Vm


def asked(machine: Vm) -> GuestOptions:
    """Return what the user of a VM asked for when it was started.

    Raises:
        StateError: that is not known, or it is not this process's to restart.
    """
    options = machine.state.spec.asked
    if options is None:
        raise StateError(
            f"{machine.name} cannot be restarted: it does not say how it was asked for",
            hint=f"an older vmdebug started it: vmdebug stop {machine.name}, and start it anew",
        )
    owner = machine.state.owner
    if owner is not None and owner != ProcessRef.of(os.getpid()):
        raise StateError(
            f"{machine.name} belongs to process {owner.pid}, and ends with it",
            hint="restart it there: session.restart()",
        )
    return options


def resolve(machine: Vm, *, halt: bool | None = None, report: Report, deadline: Deadline) -> LaunchSpec:
    """Return what starts the VM anew, its kernel looked at once more; the VM is left as it is.

    Args:
        machine: The VM.
        halt: Whether to stop at the reset vector; None as before.
        report: Told about long steps.
        deadline: When building the guest is given up.

    Raises:
        StateError: as `asked`.
        UsageError: what was asked for is no more.
        MismatchError: kernel and symbols do not belong together.
    """
    options = asked(machine)
    spec = sources.resolve(options, report=report, deadline=deadline)
    wanted = options.halt if halt is None else halt
    made = spec.machine
    if isinstance(made, OwnMachine) and isinstance(before := machine.state.spec.machine, OwnMachine):
        made = msgspec.structs.replace(made, throwaway=before.throwaway)
    return msgspec.structs.replace(spec, name=machine.name, halt=wanted, machine=made)


def replace(machine: Vm, spec: LaunchSpec, *, report: Report, launch_seconds: float) -> Vm:
    """End a VM and start what takes its place, by the same name.

    Args:
        machine: The VM.
        spec: What `resolve` returned.
        report: Told about long steps.
        launch_seconds: How long QEMU may take to answer.

    Raises:
        LaunchError: QEMU did not start; the VM is gone.
    """
    bound = machine.state.owner is not None
    machine.stop()
    return vm.launch(spec, bound=bound, report=report, deadline=Deadline.after(launch_seconds))


def attached(machine: Vm) -> str:
    """Return who has a GDB attached, in words; "" for nobody."""
    try:
        with VmOwner.claim(machine.rundir.attach_lock, machine.name):
            return ""
    except StateError as error:
        return error.message.rpartition(": ")[2]
