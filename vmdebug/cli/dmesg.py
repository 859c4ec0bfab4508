"""`vmdebug dmesg`: prints the kernel log from guest memory."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from vmdebug.cli import dumped, options, render, verb
from vmdebug.errors import StateError

app = verb.new_app()


@app.command(
    epilog=verb.examples("vmdebug dmesg", "vmdebug dmesg base-nixos -n 40", "vmdebug dmesg ./vmcore"),
)
def dmesg(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME|FILE", help="The VM, or a dump.", autocompletion=verb.complete_vm),
    ] = None,
    *,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=1, help="Print only the last N lines.")
    ] = 100_000,
    vmlinux: dumped.Vmlinux = None,
    force: options.Force = False,
) -> None:
    """Print the kernel log, read from guest memory or from a dump.

    Works when the guest has crashed or hangs, and before the console is up. Attaches GDB, which
    stops the guest meanwhile.
    """
    file = dumped.path(name)
    if file is not None:
        from vmdebug import dump_report

        (program, _), _ = dumped.opened(file, vmlinux, what="the log of a dump", force=force)
        render.put("\n".join(dump_report.dmesg(program).splitlines()[-lines:]))
        return
    dumped.refuse_vmlinux(vmlinux)
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
