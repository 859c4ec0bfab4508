"""`vmdebug dap`: a debug adapter for editors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.errors import UsageError

app = verb.new_app()


@app.command(
    epilog=verb.examples(
        "vmdebug editor vscode --write    # the configuration with which VS Code starts it",
        "vmdebug dap --port 4711 --log /tmp/dap.log",
    ),
)
def dap(
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Listen on this port of 127.0.0.1 instead of standard input; 0 is any free port.",
        ),
    ] = None,
    gdb: Annotated[
        str | None,
        typer.Option(
            metavar="PROG",
            help="GDB 14 or newer, may include options; by default that of vmdebug[gdb], else `gdb`.",
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all messages to FILE, one a line.")
    ] = None,
) -> None:
    """Serve an editor's debugger: the Debug Adapter Protocol, on standard input and output.

    An editor starts it. Its launch request starts a guest, with the options of `vmdebug start`; its attach
    request takes a running VM. At the end a guest that was started ends, and any other is left as it was.
    """
    from vmdebug.faces.dap import server

    if port is not None:
        server.on_port(port, gdb=gdb, log=log, tell=render.tell)
    if sys.stdin.isatty():
        raise UsageError(
            "`vmdebug dap` speaks to an editor, and its standard input is a terminal",
            hint="configure your editor: vmdebug editor --help; or listen on a port: --port 4711",
        )
    server.on_stdio(gdb=gdb, log=log)
