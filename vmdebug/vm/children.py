"""What this process started and left running: kept, so that it can be reaped when it ends.

A QEMU that ends while the Python that started it lives on stays a zombie until it
is waited for, and a `Popen` that is dropped before that complains.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subprocess import Popen

_started: list[Popen[bytes]] = []
_lock = threading.Lock()


def adopt(child: Popen[bytes]) -> None:
    """Keep a child until `reap` finds that it has ended."""
    reap()
    with _lock:
        _started.append(child)


def reap() -> None:
    """Reap the children that have ended; waits for none."""
    with _lock:
        _started[:] = [child for child in _started if child.poll() is None]
