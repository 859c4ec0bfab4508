"""`vmdebug clone`: copies of a VM that runs, in a fraction of its boot."""

from __future__ import annotations

from typing import Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.deadline import LAUNCH_SECONDS, Deadline

app = verb.new_app()


@app.command(
    epilog=verb.examples("vmdebug clone", "vmdebug clone base --count 3", "vmdebug clone base --json | jq"),
)
def clone(
    name: verb.VmName = None,
    *,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="How many.")] = 1,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds until they have to run.")
    ] = LAUNCH_SECONDS,
    as_json: verb.Json = False,
) -> None:
    """Start copies of a VM that go on from where it is.

    They are named NAME-1, NAME-2, … and share its memory as it is now, each with a copy of the pages
    that it writes to; sockets and log are their own. NAME itself is held for a moment and goes on.
    Its clock and what its kernel had of random numbers are copied with it; see docs/clones.md.
    """
    from vmdebug import vm
    from vmdebug.debugger.ownership import VmOwner
    from vmdebug.vm.clones import clone as cloning

    machine = vm.find(name)
    with VmOwner.claim(machine.rundir.attach_lock, machine.name), render.progress() as report:
        clones = cloning.clone(machine, count, report=report, deadline=Deadline.after(timeout))
    if as_json:
        render.put_json([each.facts() for each in clones])
        return
    for each in clones:
        render.put(each.name)
    render.tell(f"\nnext:\n  vmdebug exec {clones[0].name} -- uname -a\n  vmdebug attach {clones[0].name}")
