"""Copies files and directories out of the guest."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from vmdebug.channel.files import limited, moving
from vmdebug.channel.files.arriving import Receiver
from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.shell import Sink, Streams
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError
from vmdebug.progress import Report


def get(
    shell: GuestShell,
    sources: Sequence[str],
    destination: Path | Sink,
    *,
    report: Report,
    deadline: Deadline,
    directory: bool = False,
) -> None:
    """Copy files, and directories with all that is in them, out of the guest.

    A source named by a symbolic link is what the link points to; links in a directory stay links. Modes and
    times (whole seconds) are kept, except set-user-ID and set-group-ID. Blocks of zeros become holes. Device
    nodes, sockets and pipes in a directory are left out.

    Args:
        shell: The guest's shell.
        sources: Paths in the guest.
        destination: A directory, which gets each source under its own name; or, for one source, the path of
            the copy. A directory that exists there is merged with the source. Or a function that gets the
            data of a file.
        report: Called during long copies.
        deadline: When to give up.
        directory: Whether the destination was written with a slash at its end: a file does not get its name.

    Raises:
        UsageError: the destination does not fit the sources, or its directory does not exist.
        HostError: the destination cannot be written.
        VmError: a source does not exist in the guest, or cannot be read.
        VmdebugError: as `GuestShell.begin` does.
    """
    for source in sources:
        if not source:
            raise UsageError("the path in the guest is empty", hint="write NAME:PATH")
        several = len(sources) > 1
        try:
            _get(
                shell,
                source,
                destination,
                several=several,
                directory=directory,
                report=report,
                deadline=deadline,
            )
        except OSError as error:
            if error.filename is None or not isinstance(destination, Path):
                raise
            raise HostError(
                f"cannot write {error.filename}: {error.strerror}", hint="make room there, or copy elsewhere"
            ) from error


def _get(
    shell: GuestShell,
    source: str,
    destination: Path | Sink,
    *,
    several: bool,
    directory: bool,
    report: Report,
    deadline: Deadline,
) -> None:
    name = moving.last_name(source)
    progress = moving.Progress(report, name or source)
    target = _target(destination, name, several) if isinstance(destination, Path) else destination
    line = f"{moving.script('get.sh')}{shlex.join(('get', source))}"
    with Receiver(target, progress, directory=directory and target == destination) as receiver:
        done = limited.run(shell, line, streams=Streams(stdout=receiver), deadline=deadline)
        if done.status != 0:
            raise moving.failure(done, source)
        receiver.finish()


def _target(destination: Path, name: str, several: bool) -> Path:
    """Return the path of a source's copy."""
    if destination.is_dir():
        return destination / name
    if several:
        raise UsageError(f"{destination} is not a directory", hint="several files need a directory: make it")
    if not destination.parent.is_dir():
        raise UsageError(f"there is no directory {destination.parent}", hint="make it, or copy elsewhere")
    return destination
