"""`vmdebug exec`: a command in the guest's shell."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.errors import UsageError


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
        "vmdebug exec -- 'cat >/tmp/test.ko' <test.ko",
    ),
)
def execute(
    context: typer.Context,
    name: verb.VmName = None,
    *,
    stdin: Annotated[
        bool | None,
        typer.Option(
            "--stdin/--no-stdin",
            "-i/-n",
            help="Whether the command reads our standard input; by default unless that is a terminal.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds for all of it, a boot still going on included.")
    ] = 60.0,
) -> None:
    """Run a command in a guest's shell.

    Its standard input, output and error are ours, byte for byte and as they come, and so is its exit
    status. One word is a line for the guest's shell, with pipes and globs; several are a program and its
    arguments, handed over as they are. Ctrl-C ends the command; several commands may run at once.
    """
    words = verb.tail(context)
    if not words:
        raise UsageError("no command to run", hint="it follows two dashes: vmdebug exec NAME -- uname -a")
    from vmdebug import vm
    from vmdebug.channel.guest_shell import WORDS
    from vmdebug.channel.shell import Streams
    from vmdebug.deadline import Deadline

    guest = vm.find(name).shell
    known = guest.found is not None
    streams = Streams(stdin=_input(stdin), stdout=render.put_bytes, stderr=render.tell_bytes)
    command = words[0] if len(words) == 1 else words
    done = guest.run(command, streams=streams, deadline=Deadline.after(timeout))
    if not known and guest.found is not None and guest.found.reason:
        render.tell(f"note: commands go by {WORDS[guest.found.kind]}: {guest.found.reason}")
    raise typer.Exit(done.status)


def _input(wanted: bool | None) -> int | None:
    """Return the descriptor that the command reads; None where it reads nothing."""
    if sys.stdin is None or wanted is False:
        return None
    if wanted is None and sys.stdin.isatty():
        return None
    return sys.stdin.fileno()
