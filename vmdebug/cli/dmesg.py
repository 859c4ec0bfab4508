"""`vmdebug dmesg`: prints the kernel log from guest memory."""

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
        int, typer.Option("--lines", "-n", metavar="N", min=1, help="Print only the last N lines.")
    ] = 100_000,
    force: options.Force = False,
) -> None:
    """Print the kernel log, read from guest memory.

    Works when the guest has crashed or hangs, and before the console is up. Attaches GDB, which
    stops the guest meanwhile.
    """
    from vmdebug import session

    with session.attach(name, force=force) as attached:
        if attached.status == "halted":
            raise StateError(
                f"{attached.name} is halted at the reset vector: the kernel has no log yet",
                hint=f"let it run: vmdebug attach {attached.name} --batch",
            )
        with contextlib.ExitStack() as examined:
            with render.step(render.SYMBOLS):
                gdb = examined.enter_context(attached.examined())
            text = gdb.dmesg(limit=lines)
        for note in gdb.notes if force else ():
            render.tell(note)
    render.put(text)
