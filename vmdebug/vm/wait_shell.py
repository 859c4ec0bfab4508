"""Waits for the shell of a VM, and gives a clone random bytes of its own.

A clone has the clock and the state of the random number generator of its template. A kernel with
CONFIG_VMGENID reseeds at once. For other kernels, vmdebug writes new bytes to /dev/urandom; the kernel uses
them at its next reseed (crng_reseed_interval of drivers/char/random.c: one second after boot, later within a
minute). Until then, two clones may generate the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from vmdebug.channel.log.inotify import Inotify
from vmdebug.channel.serial import ready
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.vm.machine import Vm

PROMPT_SECONDS = 2.0
"""How long to wait for a prompt on the console after the agent of a booting guest has answered."""

TAIL_BYTES = 8192


def wait(vm: Vm, *, copy: bool, lost: Callable[[Vm], None] | None = None, deadline: Deadline) -> None:
    """Wait until a VM's shell answers; after a boot, wait for a prompt on its console, too.

    Args:
        vm: The VM.
        copy: Whether it is a clone, which gets random bytes of its own.
        lost: Called with the VM if its shell does not answer.
        deadline: When to give up.

    Raises:
        VmError: the shell does not answer.
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
    """Wait until the console shows a prompt; return at the deadline if it shows none."""
    with vm.rundir.console_log.open("rb") as log, Inotify(vm.rundir.console_log) as inotify:
        while True:
            inotify.discard()
            log.seek(max(0, log.seek(0, 2) - TAIL_BYTES))
            if ready.look(log.read()) is ready.Look.PROMPT or not inotify.wait(deadline.remaining):
                return
