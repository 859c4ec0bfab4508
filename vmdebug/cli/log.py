"""`vmdebug log`: what the guest wrote to its serial line."""

from __future__ import annotations

from typing import Annotated

import typer

from vmdebug import process
from vmdebug.cli import render, verb

app = verb.new_app()


@app.command(
    cls=verb.Command,
    epilog=verb.examples("vmdebug log", "vmdebug log base-nixos -f", "vmdebug log | grep -i warn"),
)
def log(
    name: verb.VmName = None,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the VM ends or Ctrl-C; implies --raw.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Every byte, what `exec` and the guest's shell say to each other too."),
    ] = False,
) -> None:
    """Print a VM's serial log."""
    from vmdebug import vm
    from vmdebug.vm import framing

    machine = vm.find(name)
    path = machine.rundir.console_log
    if follow:
        # tail(1) waits by inotify for more, and by --pid for QEMU's end.
        process.replace(["tail", "-n", "+1", f"--pid={machine.state.pid}", "-f", path])
    said = path.read_bytes()
    render.put_bytes(said if raw else framing.readable(said))
