"""Work that the user's first command needs, and the way to the prompt does not.

At a terminal it is done once the prompt is on the screen, before GDB has read a line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import gdb

_WORK: list[Callable[[], None]] = []


def add(work: Callable[[], None]) -> None:
    """Do this before the user's first command; at once if GDB has no prompt."""
    if _has_interpreter():
        work()
        return
    if not _WORK:
        gdb.events.before_prompt.connect(_at_prompt)
    _WORK.append(work)


def waits(work: Callable[[], None]) -> bool:
    """Whether this is still to be done."""
    return work in _WORK


def run() -> None:
    """Do it now: a command of the user follows."""
    if _WORK:
        gdb.events.before_prompt.disconnect(_at_prompt)
    _run()


def _run() -> None:
    while _WORK:
        _WORK.pop(0)()


def _at_prompt(_event: object = None) -> None:
    """GDB is about to show its first prompt.

    With editing GDB reads the terminal byte by byte, and serves its other events in between, so `_run` runs
    before a line is complete; see `gdb_wait_for_event` in gdbsupport/event-loop.cc. Otherwise it reads a
    whole line at once.
    """
    gdb.events.before_prompt.disconnect(_at_prompt)
    if os.isatty(0) and gdb.parameter("editing"):
        gdb.post_event(_run)
    else:
        _run()


def _has_interpreter() -> bool:
    """Whether GDB speaks MI or DAP, which have no prompt. GDB's Python does not tell its interpreter."""
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return any(re.match(rb"--?i(nt[a-z]*)?(=|$)", word) for word in words)
