"""`vmdebug mcp`: a server of the Model Context Protocol, for AI agents."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.errors import UsageError

app = verb.new_app()


@app.command(
    epilog=verb.examples("vmdebug mcp", "vmdebug mcp --guest ~/src/linux", "vmdebug mcp --allow-existing"),
)
def mcp(
    *,
    guest: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GUEST",
            help="Permit the agent to start this guest, too. Repeatable.",
            autocompletion=verb.complete_guest,
        ),
    ] = None,
    allow_existing: Annotated[
        bool,
        typer.Option(
            "--allow-existing", help="Permit the agent to use VMs that this server has not started."
        ),
    ] = False,
) -> None:
    """Let an AI agent start, debug and trace guests: an MCP server on stdio.

    The agent's program starts it; see docs/howto/agents.md. The agent may start `builtin`, the guests of the
    nearest vmdebug.toml and those of --guest, and can neither run nor write anything else on this machine.
    Its VMs end with the server.

    Needs the Python package mcp: pip install 'vmdebug[mcp]'.
    """
    from vmdebug import extras

    extras.MCP.need("vmdebug mcp")
    if sys.stdin.isatty():
        raise UsageError(
            "vmdebug mcp speaks JSON on standard input, which is a terminal",
            hint="configure it in your agent's program: docs/howto/agents.md",
        )
    _find_runtime_directory()
    from vmdebug.faces.mcp import guests, server

    permitted = guests.Permitted.of(guest or ())
    permitted.names()  # an invalid vmdebug.toml is reported now
    render.tell(f"vmdebug mcp: the agent may start {', '.join(permitted.names())}")
    server.run(permitted, allow_existing=allow_existing)


def _find_runtime_directory() -> None:
    """Set XDG_RUNTIME_DIR as a login does; clients start their servers with few variables."""
    usual = Path(f"/run/user/{os.geteuid()}")
    if "XDG_RUNTIME_DIR" not in os.environ and usual.is_dir() and os.access(usual, os.W_OK):
        os.environ["XDG_RUNTIME_DIR"] = str(usual)
