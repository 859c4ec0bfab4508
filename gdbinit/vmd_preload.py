"""Imports what will be needed while GDB reads symbols, which it does without Python.

Where there is but one CPU nothing is lost by it.
"""

from __future__ import annotations

import _thread
import contextlib
import importlib
import signal


def start(*modules: str) -> None:
    """Start to import modules that ask GDB nothing while they are imported.

    Who imports one of them meanwhile waits for it; one that cannot be imported is told to whoever wants it.

    Args:
        modules: Their names.
    """
    # Signals are for GDB's own thread: see "Basic Python" in its manual.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        # Not by `threading`, which would have GDB wait at its end, and tell of Ctrl-C there.
        _thread.start_new_thread(_import, modules)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _import(*modules: str) -> None:
    for each in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(each)
