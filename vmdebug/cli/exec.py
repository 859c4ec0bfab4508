"""`vmdebug exec`: a command in the guest's shell."""

from __future__ import annotations

from typing import Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.errors import StateError, UsageError

RESUME = {
    "halted": "let it go: vmdebug attach {name} --batch",
    "paused": "continue or quit the GDB that holds it; if none does: vmdebug attach {name} --batch",
}
"""How a guest that stands still is set running, by its status."""


class Exec(verb.WithTail):
    """`exec`, whose command follows `--`."""

    tail_metavar = "CMD [ARGS]"


app = verb.new_app()


@app.command(
    cls=Exec,
    epilog=verb.examples(
        "vmdebug exec -- uname -a",
        "vmdebug exec base-nixos -- 'dmesg | tail'",
        "vmdebug exec -- cat /proc/config.gz | zcat",
    ),
)
def execute(
    context: typer.Context,
    name: verb.VmName = None,
    *,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds for all of it, a boot still going on included.")
    ] = 60.0,
) -> None:
    """Run a command in a guest's shell.

    Its output, byte for byte, and its exit status are ours. One word is a line for the guest's shell,
    with pipes and globs; several are a program and its arguments, handed over as they are.
    """
    words = verb.tail(context)
    if not words:
        raise UsageError("no command to run", hint="it follows two dashes: vmdebug exec NAME -- uname -a")
    from vmdebug import session

    with session.attach(name) as attached:
        if attached.status in RESUME:
            raise StateError(
                f"exec needs a running guest, and {attached.name} is {attached.status}",
                hint=RESUME[attached.status].format(name=attached.name),
            )
        done = attached.exec(words[0] if len(words) == 1 else words, timeout=timeout)
    # The session's text is lossless: bytes that are no UTF-8 come back as they were.
    render.put_bytes(done.stdout.encode(errors="surrogateescape"))
    render.tell_bytes(done.stderr.encode(errors="surrogateescape"))
    raise typer.Exit(done.status)
