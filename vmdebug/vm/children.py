"""What this process started and left running: kept, so that it can be reaped when it ends.

A QEMU that ends while the Python that started it lives on stays a zombie until it
is waited for, and a `Popen` that is dropped before that complains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subprocess import Popen

_started: list[Popen[bytes]] = []


def adopt(child: Popen[bytes]) -> None:
    """Keep a child until `reap` finds that it has ended."""
    reap()
    _started.append(child)


def reap() -> None:
    """Reap the children that have ended; waits for none."""
    _started[:] = [child for child in _started if child.poll() is None]
