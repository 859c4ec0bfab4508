"""Copies files and directories into the guest."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmdebug.channel.files import limited, moving
from vmdebug.channel.files.archive import BLOCK, Tree, block_runs, read_runs
from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.shell import Streams
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError
from vmdebug.progress import Report

Source = os.PathLike[str] | str | bytes | int
"""A file or directory; or the content of a file, as bytes or as a descriptor to read."""


def put(
    shell: GuestShell,
    sources: Sequence[Source],
    destination: str,
    *,
    report: Report,
    deadline: Deadline,
) -> None:
    """Copy files, and directories with all that is in them, into the guest.

    A source named by a symbolic link is what the link points to; links in a directory stay links. Modes and
    times (whole seconds) are kept; the copies belong to the guest's root.

    Args:
        shell: The guest's shell.
        sources: The files and directories, or the content of a file.
        destination: A directory in the guest, which gets each source under its own name; or, for one source,
            the path of the copy. A directory that exists there is merged with the source.
        report: Called during long copies.
        deadline: When to give up.

    Raises:
        UsageError: a source does not exist.
        HostError: a source cannot be read.
        VmError: the guest cannot write a copy, for example because its disk is full or it has no tar.
        VmdebugError: as `GuestShell.begin` does.
    """
    if not destination:
        raise UsageError("the path in the guest is empty", hint="write NAME:PATH")
    into = "into" if len(sources) > 1 else ""
    for source in sources:
        try:
            _put(shell, source, destination, into=into, report=report, deadline=deadline)
        except OSError as error:
            raise _unreadable(error) from error


def _put(
    shell: GuestShell, source: Source, destination: str, *, into: str, report: Report, deadline: Deadline
) -> None:
    stdin: bytes | int | Iterator[bytes]
    call: tuple[str, ...]
    name = "" if isinstance(source, bytes | int) else moving.last_name(os.fspath(source))
    progress = moving.Progress(report, name or destination)
    if isinstance(source, bytes | int):
        progress.total = len(source) if isinstance(source, bytes) else None
        receive, call = _WHOLE, ("put_file", _text(progress.total), "", "")
        stdin = source
    else:
        path = Path(source).resolve(strict=True)
        if path.is_dir():
            tree = Tree(path)
            receive, call = _pieces(tree), ("put_tree", *_kept(path.stat()))
            stdin, progress.total = tree.stream(), tree.size
        else:
            receive, call, stdin, progress.total = _file(path)
    where = ("destination", destination, name, into)
    line = f"{moving.script('put.sh')}receive() {{\n{receive}\n}}\n{shlex.join(where)}\n{shlex.join(call)}"
    done = limited.run(shell, line, streams=Streams(stdin=stdin, on_input=progress), deadline=deadline)
    if done.status != 0:
        raise moving.failure(done, destination)


_WHOLE = 'cat >"$1"'
"""The body of `receive` in `put.sh` for a file without holes."""


def _file(path: Path) -> tuple[str, tuple[str, ...], Iterator[bytes] | int, int | None]:
    """Return the body of `receive` for a file, the call of `put.sh`, its input, and the input's size."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        # A pipe or a device, such as a shell's `<(command)`.
        return _WHOLE, ("put_file", "", "", ""), _whole(path), None
    runs = block_runs(path, status)
    call = ("put_file", str(status.st_size), *_kept(status))
    if runs is None:
        return _WHOLE, call, read_runs(path, [(0, status.st_size)]), status.st_size
    receive = _piece_lines('"$1"', runs, status)
    return receive, call, read_runs(path, runs, padded=True), sum(size for _, size in runs)


def _whole(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while data := stream.read(BLOCK):
            yield data


def _pieces(tree: Tree) -> str:
    """Return the body of `receive` for the files with holes of a tree; the others are in its archive."""
    lines = [
        _piece_lines(f'"$1"/{shlex.quote(name)}', runs, status) for name, runs, status in tree.with_holes
    ]
    return "\n".join([*lines, ":"])


def _piece_lines(file: str, runs: Sequence[tuple[int, int]], status: os.stat_result) -> str:
    pieces = [f"hole_piece {start // BLOCK} {-(-size // BLOCK)}" for start, size in runs]
    end = f"hole_end {status.st_size} {' '.join(_kept(status))}"
    return "\n".join([f"hole_begin {file}", *pieces, end])


def _kept(status: os.stat_result) -> tuple[str, str]:
    """Return mode and time of a file, as chmod and touch take them."""
    return f"{stat.S_IMODE(status.st_mode):o}", str(int(status.st_mtime))


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _unreadable(error: OSError) -> Exception:
    if error.filename is None:
        return error
    if error.errno == errno.ENOENT:
        return UsageError(f"{error.filename} does not exist", hint="check the path")
    return HostError(f"cannot read {error.filename}: {error.strerror}", hint="check its permissions")
