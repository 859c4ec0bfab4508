"""Prewarmed VMs, which are started before a test needs them.

A prewarmed VM is paused at its shell, so it takes no CPU time and does not change. Commands without the name
of a VM ignore it. `resume` makes it an ordinary VM.
"""

from __future__ import annotations

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.vm import state
from vmdebug.vm.machine import Vm


def pause(vm: Vm, *, deadline: Deadline) -> None:
    """Pause a prewarmed VM. A VM at its reset vector is already stopped.

    Args:
        vm: A VM that was started with `prewarmed`.
        deadline: When to give up.

    Raises:
        GuestDiedError: QEMU has ended.
        DeadlineError: QEMU does not answer.
    """
    _execute(vm, "stop", deadline)


def resume(vm: Vm, *, deadline: Deadline) -> None:
    """Make a prewarmed VM an ordinary one, and set it running.

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
