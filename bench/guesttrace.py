"""Traces by the guest's kernel in a `dd bs=1 count=500000` loop: hits per second against GDB's, and its time.

The loop runs alternately without a trace and with one; each trace must have all hits.
"""

from __future__ import annotations

import statistics
import time

import vmdebug
from bench.figure import Figure
from vmdebug.session import DebugSession

GOAL = 500.0
TRACED_GOAL = 3.0
ROUNDS = 5
READS = 500_000
GDB_READS = 300
SECONDS = 240.0
SYMBOL = "vfs_read"
ARGS = ("file", "buf", "count", "pos")


def figures() -> list[Figure]:
    """Return all figures."""
    plain, traced, rates = [], [], []
    with vmdebug.start("builtin", accel="tcg", trace_ready="no") as session:
        session.exec("true", timeout=SECONDS)
        for _ in range(ROUNDS):
            plain.append(_seconds(session))
            taken, rate = _traced(session)
            traced.append(taken)
            rates.append(rate)
        gdb = _gdb(session)
    rate = statistics.median(rates)
    guest, alone = statistics.median(traced), statistics.median(plain)
    return [
        Figure("trace-guest", rate, gdb, GOAL, "hits/s", "vmdebug's GDB collector", more=True),
        Figure("trace-guest-time", guest, alone, TRACED_GOAL, "s", "no trace"),
    ]


def _seconds(session: DebugSession, reads: int = READS) -> float:
    begin = time.perf_counter()
    session.exec(f"dd if=/dev/zero of=/dev/null bs=1 count={reads}", timeout=SECONDS, check=True)
    return time.perf_counter() - begin


def _traced(session: DebugSession) -> tuple[float, float]:
    """Return the seconds of the loop under a trace, and the hits per second; assert that no hit is lost."""
    with session.trace(SYMBOL, args=ARGS, by="guest", timeout=SECONDS) as hits:
        taken = _seconds(session)
    assert hits.notes == ()
    found = [hit.time for hit in hits if hit.args["count"] == 1]
    assert len(found) == READS
    return taken, (len(found) - 1) / (found[-1] - found[0])


def _gdb(session: DebugSession) -> float:
    """Return the hits per second of GDB's collector."""
    with session.trace(SYMBOL, args=ARGS, by="gdb") as hits:
        _seconds(session, GDB_READS)
    times = [hit.time for hit in hits if hit.args["count"] == 1]
    return (len(times) - 1) / (times[-1] - times[0])
