"""`vmdebug clone`: copies of a running VM, in a fraction of the time that it takes to boot."""

from __future__ import annotations

from typing import Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.deadline import LAUNCH_SECONDS

app = verb.new_app()


@app.command(
    epilog=verb.examples("vmdebug clone", "vmdebug clone base --count 3", "vmdebug clone base --json | jq"),
)
def clone(
    name: verb.VmName = None,
    *,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="Number of copies.")] = 1,
    new_identity: Annotated[
        bool,
        typer.Option(
            "--new-identity",
            help="Give each copy its name as host name, and addresses of its own on bridges and segments.",
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds in which the copies must run.")
    ] = LAUNCH_SECONDS,
    as_json: verb.Json = False,
) -> None:
    """Start copies of a running VM.

    The copies are named NAME-1, NAME-2, …, and continue from NAME's present state. They share its memory,
    copy-on-write; sockets and log are their own. NAME pauses for a moment. The copies start with the same
    clock and the same random number state; the documentation on clones says what follows from that. Without
    --new-identity they are not connected to bridges and segments, where NAME has their addresses.
    """
    from vmdebug import vm
    from vmdebug.debugger.ownership import VmOwner
    from vmdebug.vm.clones import clone as cloning
    from vmdebug.vm.clones.identity import SHARED

    machine = vm.find(name)
    with VmOwner.claim(machine.rundir.attach_lock, machine.name), render.progress() as report:
        clones = cloning.clone(machine, count, new_identity=new_identity, report=report, timeout=timeout)
    if as_json:
        render.put_json([each.facts() for each in clones])
        return
    for each in clones:
        render.put(each.name)
    shared = [nic.name for nic in machine.state.spec.nics if nic.kind in SHARED]
    if shared and not new_identity:
        render.tell(
            f"note: not connected to {', '.join(shared)}, because they have the addresses of {machine.name};"
            " --new-identity gives them others"
        )
    render.tell(f"\nnext:\n  vmdebug exec {clones[0].name} -- uname -a\n  vmdebug attach {clones[0].name}")
