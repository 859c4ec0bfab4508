"""`vmdebug console`: the guest's serial line, as if one sat at it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmdebug.cli import render, verb

if TYPE_CHECKING:
    from vmdebug.vm import Vm
    from vmdebug.vm.console import Console

LEAVE = b"\x1d"
"""Ctrl-], as in telnet and virsh: what a guest's programs do not use."""

CHUNK = 4096

RECALL = 10
"""Lines of the log that are shown on coming in: a prompt that was written before comes from no socket."""

app = verb.new_app()


@app.command(
    cls=verb.Command,
    epilog=verb.examples("vmdebug console", "vmdebug console base-nixos", "echo uptime | vmdebug console"),
)
def console(name: verb.VmName = None) -> None:
    """Talk to a VM's serial line; Ctrl-] leaves.

    Everything typed goes to the guest, Ctrl-C too. When stdin is no terminal its bytes are typed, and
    the guest's words are shown until it ends.
    """
    from vmdebug import vm

    show(vm.find(name))


def show(machine: Vm) -> None:
    """Connect this terminal with a VM's serial line, until Ctrl-] or the VM's end."""
    with machine.console() as line:
        interactive = sys.stdin.isatty()
        way_out = "; Ctrl-] leaves" if interactive else ""
        render.tell(f"--- the serial line of {machine.name}{way_out} ---")
        render.put_bytes(f"{line.tail(RECALL)} ".encode(errors="replace"))
        with _raw_terminal() if interactive else contextlib.nullcontext():
            left = _converse(line)
    render.tell(f"\n--- {'left' if left else 'the end of'} {machine.name} ---")


def _converse(line: Console) -> bool:
    """Carry bytes both ways; return whether it was left rather than ended."""
    stdin = sys.stdin.fileno()
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(stdin, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == stdin:
                typed = os.read(stdin, CHUNK)
                before, leave, _ = typed.partition(LEAVE)
                if before:
                    line.send(before.decode(errors="surrogateescape"))
                if leave and os.isatty(stdin):
                    return True
                if not typed:
                    poll.unregister(stdin)
            else:
                said = line.raw()
                if not said:
                    return False
                render.put_bytes(said)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Hand every key on as it is typed; the guest echoes."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    tty.setraw(stdin)
    try:
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
