"""`vmdebug dmesg`: the kernel's log out of guest memory."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from vmdebug.cli import options, render, verb
from vmdebug.errors import StateError

app = verb.new_app()


@app.command(
    epilog=verb.examples("vmdebug dmesg", "vmdebug dmesg base-nixos -n 40"),
)
def dmesg(
    name: verb.VmName = None,
    *,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=1, help="How many lines, the last ones.")
    ] = 100_000,
    force: options.Force = False,
) -> None:
    """Print the kernel's log, read out of guest memory.

    It works when the console and the whole guest are dead, and before the console is up. GDB is
    attached for it; the guest stands still meanwhile, and then is as it was.
    """
    from vmdebug import session

    with session.attach(name, force=force) as attached:
        if attached.status == "halted":
            raise StateError(
                f"{attached.name} is halted at the reset vector: there is no kernel yet, and no log",
                hint=f"let it boot: vmdebug attach {attached.name} --batch",
            )
        with contextlib.ExitStack() as examined:
            with render.step(render.SYMBOLS):
                gdb = examined.enter_context(attached.examined())
            text = gdb.dmesg(limit=lines)
        for note in gdb.notes if force else ():
            render.tell(note)
    render.put(text)
