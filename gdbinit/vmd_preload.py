"""Imports modules in a thread while GDB reads symbols; GDB does not hold Python's global lock then.

On a host with one CPU this gains nothing and costs nothing.
"""

from __future__ import annotations

import _thread
import contextlib
import importlib
import signal

facts: dict[str, object] | None = None
"""The facts about the guest's architecture that vmdebug has passed; `vmd_arch` uses them."""


def start(*modules: str, arch: dict[str, object] | None = None) -> None:
    """Start to import modules. Their code must not call GDB while they are imported.

    Other code that imports one of them meanwhile waits for it. Import errors are ignored here, because the
    import fails again where the module is used.

    Args:
        modules: Names of the modules.
        arch: The facts about the guest's architecture; see `facts`.
    """
    global facts  # noqa: PLW0603 - one GDB, one guest
    facts = arch
    # GDB's own thread must receive the signals: see "Basic Python" in GDB's manual.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        # `threading` would make GDB wait for the thread at exit, and print a KeyboardInterrupt there.
        _thread.start_new_thread(_import, modules)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _import(*modules: str) -> None:
    for each in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(each)
