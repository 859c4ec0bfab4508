"""Runs GDB's commands without output at a terminal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import gdb


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard GDB's output in the block: GDB has no setting to hide the report of a signal."""
    gdb.flush()
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        gdb.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)
