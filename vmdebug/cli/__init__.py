"""The command line: a module for each verb, and `render` for all output.

`main` is the console script. It prints an error of a verb as one line with what was wanted and found, one
line with what to do, and the evidence, and exits with the status from `vmdebug.errors`. Tracebacks need
`--debug`. This module imports only what Python has already loaded: until `status_of` runs, Ctrl-C prints
Python's traceback.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False  # as `typing` defines it, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO, NoReturn

    from vmdebug.errors import VmdebugError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in a shell: 128 + SIGINT."""

PIPE_CLOSED = 1
"""Exit status when the reader of our output has closed it; typer uses the same."""

_HINTS = {
    errno.ENOSPC: "make room there; `vmdebug doctor` shows which directories vmdebug writes to",
    errno.EDQUOT: "make room in your quota; `vmdebug doctor` shows which directories vmdebug writes to",
    errno.EACCES: "give yourself access to it, or point vmdebug at another place",
    errno.EROFS: "set XDG_RUNTIME_DIR or XDG_CACHE_HOME to a place that can be written",
    errno.EMFILE: "raise the limit on open files: ulimit -n",
}


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        words: What follows the program's name; None takes `sys.argv`.
    """
    _open_closed_streams()
    sys.exit(status_of(sys.argv[1:] if words is None else list(words)))


def _open_closed_streams() -> None:
    """Open /dev/null for each standard stream that the caller has closed: `vmdebug … >&-`.

    Otherwise the stream is None in Python, and the next socket that we open gets its number.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode))


def status_of(words: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    try:
        # Imported here, where Ctrl-C is handled.
        from vmdebug import spelling
        from vmdebug.cli import app, render

        with spelling.spelled(spelling.command_line):
            status = app.run(words)
        render.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _abandon(sys.stdout)
        return PIPE_CLOSED
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            # Python before 3.12 makes it a RuntimeError where it creates a class, such as an enum.
            return INTERRUPTED
        if _wants_traceback(words):
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _abandon(sys.stdout)
        return _fail(_as_ours(error))
    return status


def _abandon(stream: IO[str]) -> None:
    """Discard what cannot be written: Python would try it again at exit, and exit with status 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _wants_traceback(words: Sequence[str]) -> bool:
    """Whether `--debug` precedes the verb, or VMDEBUG_DEBUG is set.

    Not parsed by typer: it must also work for words that typer cannot parse.
    """
    for word in words:
        if word == "--debug":
            return True
        if not word.startswith("-"):
            break
    return bool(os.environ.get("VMDEBUG_DEBUG"))


def _as_ours(error: Exception) -> VmdebugError:
    from vmdebug.errors import HostError, VmdebugError

    if isinstance(error, VmdebugError):
        return error
    if isinstance(error, OSError) and error.strerror is not None:
        from vmdebug import paths

        full = "" if error.filename else _full(error)
        return HostError(f"{paths.failure(error)}{full}", hint=_HINTS.get(error.errno or 0, ""))
    return VmdebugError(
        f"internal error: {type(error).__name__}: {error}",
        hint="run it again as `vmdebug --debug …`, and report the traceback",
    )


def _full(error: OSError) -> str:
    """Return which file systems are full that vmdebug writes to: an error of write(2) names no file."""
    if error.errno != errno.ENOSPC:
        return ""
    import tempfile
    from pathlib import Path

    from vmdebug import filecache, paths
    from vmdebug.vm import runtime_directory

    places = (runtime_directory.location(), filecache.directory(), Path(tempfile.gettempdir()), Path.cwd())
    found = dict.fromkeys(paths.file_system(place) for place in places if paths.full(place))
    return "".join(f"; {words}" for words in found)


def _fail(error: VmdebugError) -> int:
    from vmdebug.cli import render

    try:
        render.error(error)
    except OSError:  # nothing can be said, but the status tells
        _abandon(sys.stderr)
    return error.exit_status
