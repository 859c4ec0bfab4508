"""A VM to its shell, and a copy of one to random numbers of its own.

What is copied with a guest: its clock, which goes on from where the guest was frozen, and
its random numbers. A kernel with CONFIG_VMGENID draws new ones at once; any other gets
fresh bytes through /dev/urandom before its shell is handed over, which it takes into
account when it next reseeds (crng_reseed_interval of drivers/char/random.c: a second after
boot, a minute later on). Until then two copies may draw the same.
"""

from __future__ import annotations

from collections.abc import Callable

from vmdebug.channel.log.inotify import Growth
from vmdebug.channel.serial import ready
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.vm.machine import Vm

PROMPT_SECONDS = 2.0
"""How long a booting guest may take from its agent's answer to a prompt on its console, where it has one."""

TAIL_BYTES = 8192


def come(vm: Vm, *, copy: bool, lost: Callable[[Vm], None] | None = None, deadline: Deadline) -> None:
    """Wait until a VM's shell answers, and of one that boots until its console has a prompt as well.

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
    try:
        vm.shell.greet(deadline, copy=copy)
    except VmdebugError:
        if lost is not None:
            lost(vm)
        raise
    if not copy:
        _wait_prompt(vm, deadline.at_most(PROMPT_SECONDS))


def _wait_prompt(vm: Vm, deadline: Deadline) -> None:
    """Wait until the console shows a prompt; a guest without one is up all the same."""
    with vm.rundir.console_log.open("rb") as log, Growth(vm.rundir.console_log) as growth:
        while True:
            growth.seen()
            log.seek(max(0, log.seek(0, 2) - TAIL_BYTES))
            if ready.look(log.read()) is ready.Look.PROMPT or not growth.wait(deadline.remaining):
                return
