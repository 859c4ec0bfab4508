"""VMs that are made before somebody needs them.

A spare VM is held at its shell, so that it takes no CPU time, and is as it came from its template however
long it waits. Where no name is said it is not the one that is meant. Whoever takes it makes it one like any
other.
"""

from __future__ import annotations

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.vm import state
from vmdebug.vm.machine import Vm


def hold(vm: Vm, *, deadline: Deadline) -> None:
    """Stop a spare VM; one at its reset vector stands still by itself.

    Args:
        vm: One that was started as `spare`.
        deadline: Until when.

    Raises:
        GuestDiedError: QEMU has ended.
        DeadlineError: QEMU does not answer.
    """
    _tell(vm, "stop", deadline)


def take(vm: Vm, *, deadline: Deadline) -> None:
    """Let a VM go on that was held: it is needed now.

    Args:
        vm: The VM.
        deadline: Until when.

    Raises:
        GuestDiedError: QEMU has ended.
        HostError: that cannot be written down.
        DeadlineError: QEMU does not answer.
    """
    who = state.read_launching(vm.rundir.launching)
    if who is not None:
        state.write(vm.rundir.launching, msgspec.structs.replace(who, spare=False))
    _tell(vm, "cont", deadline)


def _tell(vm: Vm, command: str, deadline: Deadline) -> None:
    if not vm.state.spec.halt:
        vm.qmp(command, timeout=deadline.left(f"QEMU to answer {command}"))
