"""Keeps the children that this process leaves running, and reaps them when they have ended.

A QEMU that ends before its parent stays a zombie until the parent waits for it, and Python warns about a
`Popen` that is deleted before that.
"""

from __future__ import annotations

import threading

from vmdebug.process import Child

_started: list[Child] = []
_ended: dict[int, int] = {}
_lock = threading.Lock()


def adopt(child: Child) -> None:
    """Keep a child until `reap` finds that it has ended."""
    reap()
    with _lock:
        _ended.pop(child.pid, None)
        _started.append(child)


def reap() -> None:
    """Reap the children that have ended, without waiting for any."""
    with _lock:
        _ended.update({child.pid: child.returncode for child in _started if child.poll() is not None})
        _started[:] = [child for child in _started if child.returncode is None]


def status(pid: int) -> int | None:
    """Return a child's exit status, negative for a signal; None if it runs or is unknown."""
    reap()
    with _lock:
        return _ended.get(pid)
