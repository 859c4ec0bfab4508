"""VMs that are started before they are needed.

A prewarmed VM is paused at its shell: it takes no CPU time and stays as it came from its template. Commands
without a VM's name never mean a prewarmed one. Whoever takes it makes it an ordinary VM.
"""

from __future__ import annotations

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.vm import state
from vmdebug.vm.machine import Vm


def pause(vm: Vm, *, deadline: Deadline) -> None:
    """Pause a prewarmed VM; one at its reset vector is stopped already.

    Args:
        vm: One that was started as `prewarmed`.
        deadline: When to give up.

    Raises:
        GuestDiedError: QEMU has ended.
        DeadlineError: QEMU does not answer.
    """
    _execute(vm, "stop", deadline)


def resume(vm: Vm, *, deadline: Deadline) -> None:
    """Make a prewarmed VM an ordinary one, and let it run.

    Args:
        vm: The VM.
        deadline: When to give up.

    Raises:
        GuestDiedError: QEMU has ended.
        HostError: its directory cannot be written.
        DeadlineError: QEMU does not answer.
    """
    launching = state.read_launching(vm.rundir.launching)
    if launching is not None:
        state.write(vm.rundir.launching, msgspec.structs.replace(launching, prewarmed=False))
    _execute(vm, "cont", deadline)


def _execute(vm: Vm, command: str, deadline: Deadline) -> None:
    if not vm.state.spec.halt:
        vm.qmp(command, timeout=deadline.left(f"QEMU to answer {command}"))
