"""The children of this process that it leaves running: kept here until they have ended and are reaped.

A QEMU that ends before the Python that started it stays a zombie until it is waited for, and a `Popen` that
is deleted before that writes a warning.
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
    """Return a child's exit status, negative for a signal; None where it runs or is not ours."""
    reap()
    with _lock:
        return _ended.get(pid)
