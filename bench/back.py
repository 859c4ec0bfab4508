"""Going back from the end of a recording, against one plain replay of the whole.

The recording has more than 750 million instructions: a boot, reads and writes of one byte, and a write of a
variable 300 million instructions before the end. Going back begins at the end, in a replay whose first pass
has taken its snapshots.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import vmdebug
from bench.figure import Figure
from vmdebug import DebugSession, replaying

CALL_GOAL = 0.15
WRITE_GOAL = 0.4
STEP_GOAL = 0.05
SECONDS = 1800.0
ROUNDS = 3
INSTRUCTIONS = 750_000_000
BACK = 300_000_000
"""How far back the last write is, at least."""
BATCH = "dd if=/dev/zero of=/dev/null bs=1 count=20000"
VARIABLE = "panic_on_oops"
CALLED = "do_sys_openat2"


def figures() -> list[Figure]:
    """Time all of it."""
    with tempfile.TemporaryDirectory(prefix="vmd-") as name:
        recording = Path(name) / "back.vmdrec"
        _record(recording)
        whole = statistics.median(_whole(recording) for _ in range(ROUNDS))
        with vmdebug.replay(recording, to="end", timeout=SECONDS) as session:
            session.gdb  # noqa: B018 - attach before anything is timed
            call = _timed(session, lambda: _call(session))
            write = _timed(session, lambda: _write(session))
            step = _timed(session, lambda: _step(session))
    against = "a plain replay of the whole"
    return [
        Figure("back-call", call, whole, CALL_GOAL, "s", against),
        Figure("back-write", write, whole, WRITE_GOAL, "s", against),
        Figure("back-stepi", step, whole, STEP_GOAL, "s", against),
    ]


def _record(recording: Path) -> None:
    with vmdebug.start("builtin", record=recording, timeout=SECONDS) as session:
        _work(session, INSTRUCTIONS - BACK)
        session.exec(f"echo 1 >/proc/sys/kernel/{VARIABLE}", timeout=SECONDS, check=True)
        _work(session, BACK + session.vm.qmp("query-replay")["icount"])


def _work(session: DebugSession, until: int) -> None:
    while session.vm.qmp("query-replay")["icount"] < until:
        session.exec(BATCH, timeout=SECONDS, check=True)


def _whole(recording: Path) -> float:
    """Return the seconds of a replay to the end that takes only the first snapshot."""
    begin = time.perf_counter()
    with (
        mock.patch.object(replaying, "SNAPSHOTS", 1),
        vmdebug.replay(recording, to="end", timeout=SECONDS),
    ):
        return time.perf_counter() - begin


def _timed(session: DebugSession, go: Callable[[], None]) -> float:
    """Return the median seconds of going back from the end."""
    found = []
    for _ in range(ROUNDS):
        session.goto("end")
        begin = time.perf_counter()
        go()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def _call(session: DebugSession) -> None:
    with session.gdb.breakpoint(CALLED):
        assert session.gdb.back(timeout=SECONDS).frame.function == CALLED


def _write(session: DebugSession) -> None:
    write = session.gdb.last_write(VARIABLE, timeout=SECONDS)
    assert write is not None
    assert write.new == "1"
    assert replaying.needed(session.vm).end - write.position >= BACK


def _step(session: DebugSession) -> None:
    session.gdb.stepi(back=True, timeout=SECONDS)
