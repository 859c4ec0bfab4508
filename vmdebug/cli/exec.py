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
            help="Give the command vmdebug's standard input; by default if that is not a terminal.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="S", min=0, help="Exit with status 5 after S seconds, including the rest of a boot."
        ),
    ] = 60.0,
) -> None:
    """Run a command in a guest's shell.

    Connects its standard input, output and error to those of vmdebug, byte for byte, and exits with its
    status. The guest's shell interprets CMD if it is one word, with pipes and globs. Several words are a
    program and its arguments, which no shell interprets. Ctrl-C ends the command. Several commands can run
    at once.
    """
    words = verb.tail(context)
    if not words:
        raise UsageError("no command to run", hint="it follows two dashes: vmdebug exec NAME -- uname -a")
    from vmdebug import vm
    from vmdebug.channel.shell import Streams
    from vmdebug.deadline import Deadline

    guest = vm.find(name).shell
    known = guest.found is not None
    streams = Streams(stdin=_input(stdin), stdout=render.put_bytes, stderr=render.tell_bytes)
    command = words[0] if len(words) == 1 else words
    done = guest.run(command, streams=streams, deadline=Deadline.after(timeout))
    if not known and guest.found is not None and guest.found.reason:
        render.tell(f"note: commands are run by {guest.found.describe()}")
    raise typer.Exit(done.status)


def _input(wanted: bool | None) -> int | None:
    """Return the descriptor that the command reads; None where it reads nothing."""
    if sys.stdin is None or wanted is False:
        return None
    if wanted is None and sys.stdin.isatty():
        return None
    return sys.stdin.fileno()
