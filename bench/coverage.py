"""Coverage of the whole kernel: the guest's time while it is recorded, against the same guest before."""

from __future__ import annotations

import statistics
import time

import vmdebug
from bench.figure import Figure
from vmdebug.session import DebugSession

GOAL = 1.5
ROUNDS = 5
SECONDS = 120.0
COMMAND = (
    "dd if=/dev/zero of=/dev/null bs=1 count=500000 2>/dev/null;"
    " for each in $(seq 10); do cat /proc/*/status >/dev/null 2>&1; ls -R /sys/class >/dev/null; done"
)


def figures() -> list[Figure]:
    """Return the figure."""
    with vmdebug.start("builtin", accel="tcg", trace_ready="yes") as session:
        _seconds(session)
        plain, recorded = [], []
        for _ in range(ROUNDS):
            plain.append(_seconds(session))
            with session.coverage() as cover:
                recorded.append(_seconds(session))
            assert not cover.notes
    ours, baseline = statistics.median(recorded), statistics.median(plain)
    return [Figure("coverage", ours, baseline, GOAL, "s", "the same without")]


def _seconds(session: DebugSession) -> float:
    begin = time.perf_counter()
    session.exec(COMMAND, timeout=SECONDS, check=True)
    return time.perf_counter() - begin
