"""Traces by the plugin in a `dd bs=1 count=500000` loop: hits per second against GDB's, and the guest's time.

It needs a QEMU whose plugins read registers: put QEMU 9.2 or newer first on PATH. The loop runs
alternately in three guests: in one without the plugin; in one with it, which is never traced; and in one that
is traced.
"""

from __future__ import annotations

import contextlib
import statistics
import time

import vmdebug
from bench.figure import Figure
from vmdebug.session import DebugSession

GOAL = 2000.0
TRACED_GOAL = 1.4
RETURNS_GOAL = 1.8
IDLE_GOAL = 1.1
AFTER_GOAL = 1.3
"""After a trace: since QEMU 9.2, code that a plugin may change saves each value that it loads or stores."""
ROUNDS = 5
READS = 500_000
GDB_READS = 300
SECONDS = 120.0
SYMBOL = "vfs_read"
ARGS = ("file", "buf", "count", "pos")


def figures() -> list[Figure]:
    """Return all figures; none if plugins cannot read registers in this QEMU."""
    with contextlib.ExitStack() as guests:
        plain = guests.enter_context(vmdebug.start("builtin", accel="tcg", trace_ready="no"))
        idle, ready = (
            guests.enter_context(vmdebug.start("builtin", accel="tcg", trace_ready="auto")) for _ in range(2)
        )
        if ready.vm.state.untraceable:
            print(f"plugin: not timed: {ready.vm.state.untraceable}")
            return []
        for each in (plain, idle, ready):
            each.exec("true", timeout=SECONDS)
        times: dict[str, list[float]] = {"plain": [], "idle": [], "traced": [], "returns": [], "after": []}
        rates = []
        for _ in range(ROUNDS):
            times["plain"].append(_seconds(plain))
            times["idle"].append(_seconds(idle))
            for name, ret in (("traced", False), ("returns", True)):
                taken, rate = _traced(ready, ret=ret)
                times[name].append(taken)
                rates += [] if ret else [rate]
            times["after"].append(_seconds(ready))
        gdb = _gdb(ready)
    found = {name: statistics.median(each) for name, each in times.items()}
    against, rate = "no plugin", statistics.median(rates)
    return [
        Figure(
            "trace-plugin",
            statistics.median(rates),
            gdb,
            GOAL,
            "hits/s",
            "vmdebug's GDB collector",
            more=True,
        ),
        Figure("trace-plugin-guest", found["traced"], found["plain"], TRACED_GOAL, "s", against),
        Figure("trace-plugin-returns", found["returns"], found["plain"], RETURNS_GOAL, "s", against),
        Figure("trace-plugin-idle", found["idle"], found["plain"], IDLE_GOAL, "s", against),
        Figure("trace-plugin-after", found["after"], found["plain"], AFTER_GOAL, "s", against),
    ]


def _seconds(session: DebugSession, reads: int = READS) -> float:
    begin = time.perf_counter()
    session.exec(f"dd if=/dev/zero of=/dev/null bs=1 count={reads}", timeout=SECONDS, check=True)
    return time.perf_counter() - begin


def _traced(session: DebugSession, *, ret: bool) -> tuple[float, float]:
    """Return the seconds of the loop under a trace, and the hits per second; assert that no hit is lost."""
    with session.trace(SYMBOL, args=ARGS, ret=ret, by="plugin") as hits:
        taken = _seconds(session)
    assert hits.notes == ()
    assert sum(hit.args["count"] == 1 for hit in hits) >= READS
    times = [hit.time for hit in hits if hit.args["count"] == 1]
    return taken, (len(times) - 1) / (times[-1] - times[0])


def _gdb(session: DebugSession) -> float:
    """Return the hits per second of GDB's collector."""
    session.exec("true", timeout=SECONDS)
    with session.trace(SYMBOL, args=ARGS, by="gdb") as hits:
        _seconds(session, GDB_READS)
    times = [hit.time for hit in hits if hit.args["count"] == 1]
    return (len(times) - 1) / (times[-1] - times[0])
