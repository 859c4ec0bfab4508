"""`vmdebug stop`: stops VMs and removes their files."""

from __future__ import annotations

from typing import Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.errors import UsageError

app = verb.new_app()

ENDED = {
    "gone": "had ended",
    "quit": "stopped",
    "SIGTERM": "stopped with SIGTERM: QEMU could not be asked to quit",
    "SIGKILL": "killed",
}
"""The message for each way in which a VM ended; see `vmdebug.vm.machine.EndedBy`."""


@app.command(
    epilog=verb.examples("vmdebug stop", "vmdebug stop base-nixos", "vmdebug stop --all --force"),
)
def stop(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="The VMs; not needed if only one runs.", autocompletion=verb.complete_vm
        ),
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All your VMs.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Kill QEMU at once.")] = False,
) -> None:
    """Stop VMs and remove their files.

    Asks QEMU to quit, then sends SIGTERM, then SIGKILL, and removes the run directory. The guest is not
    shut down: data that it has not written to its disk is lost, as at a power failure.
    """
    from vmdebug import vm
    from vmdebug.cli import facts

    if everything and names:
        raise UsageError("--all takes no names", hint="give either names or --all")
    named = [vm.find_lost(name) or vm.find(name) for name in names or ()]
    machines = facts.every_vm() if everything else named or [vm.find()]
    for machine in machines:
        how = machine.stop(force=force)
        render.tell(f"{machine.name}: {ENDED[how]}")
    if not machines:
        render.tell("no VM is running")
