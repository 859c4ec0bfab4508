"""`vmdebug console`: the guest's serial line, as if one sat at it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from vmdebug.cli import render, verb

if TYPE_CHECKING:
    from vmdebug.vm import Vm

RECALL = 10
"""Lines of the log that are shown on coming in: a prompt that was written before comes from no socket."""

app = verb.new_app()


@app.command(
    epilog=verb.examples("vmdebug console", "vmdebug console base-nixos", "echo uptime | vmdebug console"),
)
def console(name: verb.VmName = None) -> None:
    """Connect to a VM's serial console; Ctrl-] leaves.

    Everything typed goes to the guest, Ctrl-C too. When stdin is no terminal its bytes are typed, and
    the guest's words are shown until it ends.
    """
    from vmdebug import vm

    show(vm.find(name))


def show(machine: Vm) -> None:
    """Connect this terminal with a VM's serial line, until Ctrl-] or the VM's end."""
    from vmdebug.channel.serial import terminal

    with machine.console() as line:
        interactive = sys.stdin.isatty()
        way_out = "; Ctrl-] leaves" if interactive else ""
        render.tell(f"--- the serial line of {machine.name}{way_out} ---")
        render.put_bytes(f"{line.tail(RECALL)} ".encode(errors="replace"))
        stdin = sys.stdin.fileno()
        with terminal.raw(stdin) if interactive else contextlib.nullcontext():
            left = terminal.converse(line, stdin, render.put_bytes)
    render.tell(f"\n--- {'left' if left else 'the end of'} {machine.name} ---")
