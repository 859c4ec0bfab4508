"""Delays work that the user's first command needs, but GDB's first prompt does not.

At a terminal, the work is done when the prompt is on the screen, before GDB has read a line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import gdb

_WORK: list[Callable[[], None]] = []


def add(work: Callable[[], None]) -> None:
    """Have this work done before the user's first command; do it at once if GDB has no prompt."""
    if has_interpreter():
        work()
        return
    if not _WORK:
        gdb.events.before_prompt.connect(_at_prompt)
    _WORK.append(work)


def waits(work: Callable[[], None]) -> bool:
    """Whether this work has been added and not been done yet."""
    return work in _WORK


def run() -> None:
    """Do all delayed work now, because a command of the user follows."""
    if _WORK:
        gdb.events.before_prompt.disconnect(_at_prompt)
    _run()


def _run() -> None:
    while _WORK:
        _WORK.pop(0)()


def _at_prompt(_event: object = None) -> None:
    """Do the work when GDB shows its first prompt.

    If line editing is on, GDB reads the terminal byte by byte and handles other events in between, so `_run`
    runs before a line is complete; see `gdb_wait_for_event` in gdbsupport/event-loop.cc. Otherwise GDB reads
    a whole line at once.
    """
    gdb.events.before_prompt.disconnect(_at_prompt)
    if os.isatty(0) and gdb.parameter("editing"):
        gdb.post_event(_run)
    else:
        _run()


def has_interpreter() -> bool:
    """Whether GDB runs MI or DAP, which have no prompt. GDB's Python API does not give the interpreter."""
    arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return any(re.match(rb"--?i(nt[a-z]*)?(=|$)", word) for word in arguments)
