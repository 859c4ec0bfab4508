"""What this process started and left running: kept, so that it can be reaped when it ends.

A QEMU that ends while the Python that started it lives on stays a zombie until it
is waited for, and a `Popen` that is dropped before that complains.
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
    """Reap the children that have ended; waits for none."""
    with _lock:
        _ended.update({child.pid: child.returncode for child in _started if child.poll() is not None})
        _started[:] = [child for child in _started if child.returncode is None]


def status(pid: int) -> int | None:
    """Return how a child ended, negative: by a signal; None for one that runs, or was none of ours."""
    reap()
    with _lock:
        return _ended.get(pid)
