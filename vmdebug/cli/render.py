"""All output: errors, facts, tables, progress.

Data goes to stdout and messages to stderr, so that `$(vmdebug …)` and `| jq` get the data only. rich is
imported only if stderr is a terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from vmdebug.errors import HostError, VmdebugError
from vmdebug.progress import Report, Step

PLAIN_SECONDS = 5.0
"""Without a terminal, how often a step that continues is printed again."""

_BOLD, _RED, _DIM, _OFF = "1", "1;31", "2", "0"


@contextlib.contextmanager
def _to_stdout() -> Iterator[None]:
    """Name the file where standard output cannot be written; a closed pipe stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = os.path.realpath(f"/proc/self/fd/{sys.stdout.fileno()}")
        raise HostError(
            f"cannot write standard output, {where}: {error.strerror}", hint="write it to another place"
        ) from error


def put(text: str) -> None:
    """Print data; raises as `flush` does."""
    with _to_stdout():
        sys.stdout.write(f"{text}\n")


def flush() -> None:
    """Write what was put so far.

    Raises:
        BrokenPipeError: its reader has closed it.
        HostError: it cannot be written; the message has its path and the reason.
    """
    with _to_stdout():
        sys.stdout.flush()


def put_bytes(data: bytes) -> None:
    """Print data unchanged; raises as `flush` does."""
    with _to_stdout():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def put_json(facts: Any) -> None:
    """Print facts as JSON; a path becomes its text."""
    import json

    put(json.dumps(facts, indent=2, default=str))


def tell(text: str) -> None:
    """Print a message to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def tell_bytes(data: bytes) -> None:
    """Print a program's standard error unchanged."""
    sys.stderr.flush()
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def error(failure: VmdebugError) -> None:
    """Print an error: what was wanted and found, what to do, the evidence."""
    lines = [f"{_style('vmdebug:', _RED)} {failure.message}"]
    if failure.hint:
        lines.append(f"{_style('   hint:', _BOLD)} {failure.hint}")
    lines += [f"{_style('      |', _DIM)} {line}" for line in failure.detail.splitlines()]
    tell("\n".join(lines))


def tell_facts(facts: Mapping[str, str]) -> None:
    """Print facts to stderr, one a line; a value of several lines is indented."""
    tell(_facts(facts, sys.stderr))


def put_facts(facts: Mapping[str, str]) -> None:
    """Print facts to stdout, one a line."""
    put(_facts(facts, sys.stdout))


def _facts(facts: Mapping[str, str], stream: IO[str]) -> str:
    width = max(map(len, facts), default=0)
    lines = []
    for name, value in facts.items():
        first, *more = value.splitlines() or [""]
        lines.append(f"{_style(f'{name:>{width}}', _BOLD, stream)}  {first}")
        lines += [f"{'':{width}}  {line}" for line in more]
    return "\n".join(lines)


def put_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a head; no cell is truncated, so that each can be copied."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        line = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        put(_style(line, _BOLD, sys.stdout) if row is head else line)


def _style(text: str, code: str, stream: IO[str] | None = None) -> str:
    plain = os.environ.get("NO_COLOR") or not (stream or sys.stderr).isatty()
    return text if plain else f"\033[{code}m{text}\033[{_OFF}m"


SYMBOLS = "reading the kernel's symbols"
"""The first step of a GDB, which takes seconds for a distribution's kernel."""


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """Show the long steps of the block on stderr: a bar on a terminal, else plain lines."""
    if sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield PlainReport(sys.stderr)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Show one step while the block runs."""
    with progress() as report:
        report(Step(what))
        yield


class PlainReport:
    """Writes steps as lines, and one that continues every few seconds."""

    def __init__(self, stream: IO[str], every: float = PLAIN_SECONDS) -> None:
        self._stream = stream
        self._every = every
        self._what = ""
        self._next = 0.0
        self._lock = threading.Lock()

    def __call__(self, step: Step) -> None:
        """Write the step, unless the same one was written a moment ago."""
        with self._lock:
            now = time.monotonic()
            if step.what == self._what and now < self._next:
                return
            self._what, self._next = step.what, now + self._every
            self._stream.write(f"{_line(step)}\n")
            self._stream.flush()


def _line(step: Step) -> str:
    parts = [step.what]
    if step.done is not None:
        parts.append(f"{step.done}/{step.total}" if step.total else str(step.done))
    if step.note:
        parts.append(step.note)
    return "  ".join(parts)


@contextlib.contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    tasks: dict[str, TaskID] = {}
    lock = threading.Lock()
    # transient: when the work is done, only its result should remain on the screen.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def report(step: Step) -> None:
            count = "" if step.done is None else f"{step.done}/{step.total or '?'}"
            with lock:
                if step.what not in tasks:
                    for earlier in tasks.values():
                        bars.update(earlier, visible=False)
                    tasks[step.what] = bars.add_task(escape(step.what), total=None, count="", note="")
                bars.update(
                    tasks[step.what],
                    total=step.total,
                    completed=step.done or 0,
                    count=count,
                    note=escape(step.note),
                    visible=True,
                )

        yield report
