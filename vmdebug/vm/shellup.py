"""A VM to its shell, and a copy of one to random numbers of its own.

What is copied with a guest: its clock, which goes on from where the guest was frozen, and
its random numbers. A kernel with CONFIG_VMGENID draws new ones at once; any other gets
fresh bytes through /dev/urandom before its shell is handed over, which it takes into
account when it next reseeds (crng_reseed_interval of drivers/char/random.c: a second after
boot, a minute later on). Until then two copies may draw the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.vm.machine import Vm

SEED_BYTES = 16


def come(vm: Vm, *, copy: bool, lost: Callable[[Vm], None] | None = None, deadline: Deadline) -> None:
    """Wait until a VM's shell answers.

    Args:
        vm: The VM.
        copy: Whether it goes on where another stood, and gets random bytes of its own.
        lost: Told the VM, where its shell does not come.
        deadline: Until when.

    Raises:
        VmError: it does not come to a shell.
        GuestDiedError: the guest died.
        DeadlineError: it took too long.
    """
    before = f"echo {secrets.token_hex(SEED_BYTES)} >/dev/urandom" if copy else ""
    try:
        with vm.console() as console:
            console.wait_ready(deadline, before=before)
    except VmdebugError:
        if lost is not None:
            lost(vm)
        raise
    vm.at_prompt = True
