"""`vmdebug console`: connects the terminal to the guest's serial line."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from vmdebug.cli import render, verb
from vmdebug.errors import DeadlineError

if TYPE_CHECKING:
    from vmdebug.vm import Vm

STATUS_SECONDS = 2.0
"""How long to ask QEMU what the guest does; other commands may keep it busy."""

RECALL = 10
"""Lines of the log to print first: the socket does not repeat a prompt that was printed earlier."""

app = verb.new_app()


@app.command(
    epilog=verb.examples("vmdebug console", "vmdebug console base-nixos", "echo uptime | vmdebug console"),
)
def console(name: verb.VmName = None) -> None:
    """Connect to a VM's serial console; Ctrl-] leaves.

    Sends every key to the guest, including Ctrl-C. If stdin is not a terminal, sends its bytes and prints
    the guest's output until the VM ends.
    """
    from vmdebug import vm

    show(vm.find(name))


def show(machine: Vm, *, interrupted: int = -1) -> None:
    """Connect this terminal to a VM's serial line until Ctrl-] or until the VM ends.

    Args:
        machine: The VM.
        interrupted: The descriptor of `terminal.interrupts`; -1 for none.
    """
    from vmdebug.channel.serial import terminal

    with machine.console() as console:
        interactive = sys.stdin.isatty()
        way_out = "; Ctrl-] leaves" if interactive else ""
        render.tell(f"--- the serial line of {machine.name}{way_out} ---")
        _tell_silence(machine)
        render.put_bytes(f"{console.tail(RECALL)} ".encode(errors="replace"))
        stdin = sys.stdin.fileno()
        with terminal.raw(stdin) if interactive else contextlib.nullcontext():
            left = terminal.relay(console.line, stdin, render.put_bytes, interrupted=interrupted)
    render.tell(f"\n--- {'left' if left else 'the end of'} {machine.name} ---")


_SILENT = {
    "halted": "is halted at the reset vector",
    "paused": "is paused",
    "panicked": "has panicked",
    "failed": "cannot run any more",
}
"""Words for the statuses of a guest that neither prints nor reads what is typed."""


def _tell_silence(machine: Vm) -> None:
    """Print a note if the guest will not answer; as its console looks, it might."""
    from vmdebug.vm import guest_status

    with contextlib.suppress(DeadlineError):
        status = machine.status(timeout=STATUS_SECONDS)
        if status in _SILENT:
            what = f"{machine.name} {_SILENT[status]} and answers nothing"
            render.tell(f"note: {what}; {guest_status.how_to_run(status, machine.name)}")
