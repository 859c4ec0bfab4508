"""Wakes a QEMU that replays: without it, the guest's idle time takes as long as it took.

While the guest is idle, QEMU's main thread sleeps until its next timer. It learns the time only from its log,
and looks there only when it wakes. A question on QMP wakes it.

It runs as a program of its own, and ends with QEMU: `python -m vmdebug.vm.replay_waker SOCKET`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from vmdebug.vm.record_monitor import EndedError, Monitor

PAUSE = 0.001
"""Seconds between two questions while the guest runs."""


def serve(monitor: Monitor) -> None:
    """Ask as long as the guest runs, and wait for its next run.

    Raises:
        EndedError: QEMU has ended.
    """
    while True:
        (status,) = monitor.execute_all([("query-status", {})])
        if status is not None and status["running"]:
            time.sleep(PAUSE)
        else:
            monitor.wait_event("RESUME")


if __name__ == "__main__":
    with contextlib.suppress(EndedError):
        serve(Monitor.connected(Path(sys.argv[1])))
