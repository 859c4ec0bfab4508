"""Runs a command whose input and output may be larger than the channel into the guest can carry at once."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator

from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.shell import ExecResult, Streams, all_input
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError, VmError

CLEANUP_SECONDS = 10.0
"""How long the removal of a file in the guest may take after an error."""


def run(shell: GuestShell, line: str, *, streams: Streams, deadline: Deadline) -> ExecResult:
    """Run a command. If the channel limits its input and output, pass them in pieces, by files in the guest.

    Args:
        shell: The guest's shell.
        line: A line of shell.
        streams: Its standard streams.
        deadline: When to give up.

    Raises:
        VmdebugError: as `GuestShell.run` does.
    """
    largest = shell.wait(deadline).largest
    if largest is None:
        return shell.run(line, streams=streams, deadline=deadline)
    data = all_input(streams, deadline)
    with _directory(shell, deadline) as directory:
        source, result = f"{directory}/in", f"{directory}/out"
        for piece in _pieces(data or b"", largest):
            _append(shell, source, piece, deadline)
            if streams.on_input is not None:
                streams.on_input(len(piece))
        # In parentheses, an `exit` of the command ends only the subshell.
        redirected = f"(\n{line}\n) <{source if data else '/dev/null'} >{result}"
        done = shell.run(redirected, streams=Streams(), deadline=deadline)
        if streams.stdout is not None:
            number = 0
            while piece := _piece(shell, result, number, largest, deadline):
                streams.stdout(piece)
                number += 1
    return done


@contextlib.contextmanager
def _directory(shell: GuestShell, deadline: Deadline) -> Iterator[str]:
    created = shell.run("mktemp -d", streams=Streams(), deadline=deadline, check=True)
    directory = shlex.quote(created.stdout.strip())
    try:
        yield directory
    finally:
        with contextlib.suppress(VmdebugError):
            command = f"rm -rf {directory}"
            shell.run(command, streams=Streams(), deadline=Deadline.after(CLEANUP_SECONDS))


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _append(shell: GuestShell, file: str, piece: bytes, deadline: Deadline) -> None:
    done = shell.run(f"cat >>{file}", streams=Streams(stdin=piece), deadline=deadline)
    if done.status != 0:
        raise VmError(
            "the guest cannot write a temporary file, which this channel into it needs for a copy",
            hint="make room in its directory for temporary files, or run vmdebug's agent in the guest",
            detail=done.stderr,
        )


def _piece(shell: GuestShell, file: str, number: int, size: int, deadline: Deadline) -> bytes:
    found = bytearray()
    line = f"dd if={file} bs={size} skip={number} count=1 2>/dev/null"
    shell.run(line, streams=Streams(stdout=found.extend), deadline=deadline, check=True)
    return bytes(found)
