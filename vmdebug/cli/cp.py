"""`vmdebug cp`: files and directories into a guest, and out of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import render, verb
from vmdebug.deadline import COPY_SECONDS
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.channel.files.put import Source

STREAM = "-"
"""The word for standard input or output."""

app = verb.new_app()


@app.command(
    epilog=verb.examples(
        "vmdebug cp reproducer.c base:/root/",
        "vmdebug cp build/*.ko base:/tmp",
        "vmdebug cp base:/var/log .",
        "vmdebug cp base:/proc/config.gz - | zcat",
        "tar -c tests | vmdebug cp - base:/tmp/tests.tar",
    ),
)
def cp(
    words: Annotated[
        list[str],
        typer.Argument(metavar="SRC… DST", help="PATH, NAME:PATH, or `-` for standard input or output."),
    ],
    *,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Exit with status 5 after S seconds.")
    ] = COPY_SECONDS,
) -> None:
    """Copy files and directories into a guest, or out of it.

    NAME:PATH is a path in the guest; :PATH is enough if only one VM runs. Directories are copied with all
    that is in them, and merged with one that exists. Modes and times are kept. A copy gets its name only when
    it is complete: if the disk is full, or Ctrl-C ends it, nothing is left.
    """
    if len(words) < 2:  # noqa: PLR2004 - a source and a destination
        raise UsageError("cp needs a source and a destination", hint="vmdebug cp FILE NAME:PATH")
    *sources, last = words
    name, destination = _split(last)
    origins = [_split(each) for each in sources]
    if STREAM in sources and len(sources) > 1:
        raise UsageError("standard input is one file", hint="copy the others separately")
    if name is not None and all(origin is None for origin, _ in origins):
        _put(name, [path for _, path in origins], destination, timeout)
    elif name is None and origins[0][0] is not None and len({origin for origin, _ in origins}) == 1:
        _get(origins[0][0], [path for _, path in origins], destination, timeout)
    else:
        raise _neither(name, origins)


def _neither(name: str | None, origins: list[tuple[str | None, str]]) -> UsageError:
    if name is None and all(origin is None for origin, _ in origins):
        return UsageError("no path is in a guest", hint="write NAME:PATH, or :PATH if only one VM runs")
    return UsageError(
        "cp copies between this machine and one guest",
        hint="copy between guests in two steps: vmdebug cp A:FILE - | vmdebug cp - B:FILE",
    )


def _split(word: str) -> tuple[str | None, str]:
    """Return the name of the VM and the path; None for a path on this machine, as scp tells them apart."""
    name, colon, path = word.partition(":")
    return (name, path) if colon and "/" not in name else (None, word)


def _put(name: str, sources: list[str], destination: str, timeout: float) -> None:
    from vmdebug import vm
    from vmdebug.channel.files.put import put
    from vmdebug.deadline import Deadline

    read: list[Source] = [sys.stdin.fileno() if each == STREAM else each for each in sources]
    with render.progress() as report:
        put(vm.find(name or None).shell, read, destination, report=report, deadline=Deadline.after(timeout))


def _get(name: str, sources: list[str], destination: str, timeout: float) -> None:
    from vmdebug import vm
    from vmdebug.channel.files.get import get
    from vmdebug.deadline import Deadline

    if destination == STREAM and len(sources) > 1:
        raise UsageError("standard output takes one file", hint="copy the files one at a time")
    into = render.put_bytes if destination == STREAM else Path(destination)
    with render.progress() as report:
        shell, deadline = vm.find(name or None).shell, Deadline.after(timeout)
        get(shell, sources, into, report=report, deadline=deadline, directory=destination.endswith("/"))
