"""`vmdebug stop`: the end of a VM, with nothing left behind."""

from __future__ import annotations

from typing import Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.errors import UsageError

app = verb.new_app()

ENDED = {
    "gone": "had ended",
    "quit": "stopped",
    "SIGTERM": "stopped, by SIGTERM: QEMU did not answer",
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
            metavar="NAME", help="Which VMs; not needed while only one runs.", autocompletion=verb.complete_vm
        ),
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Every VM of yours.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Kill QEMU at once instead of asking it.")] = False,
) -> None:
    """End VMs and leave nothing behind.

    QEMU is asked to quit, then told by SIGTERM, then killed; the run directory goes with it. The
    guest is not shut down: what it has not written to its disk is lost, as with a pulled plug.
    """
    from vmdebug import vm
    from vmdebug.cli import facts

    if everything and names:
        raise UsageError("--all and names cannot both be given", hint="leave one of them out")
    named = [vm.find(name) for name in names or ()]
    machines = facts.every_vm() if everything else named or [vm.find()]
    for machine in machines:
        how = machine.stop(force=force)
        render.tell(f"{machine.name}: {ENDED[how]}")
    if not machines:
        render.tell("no VM runs")
