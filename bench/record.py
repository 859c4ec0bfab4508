"""Recording against plain TCG with one CPU, an idle recording's log, and a first pass against a plain replay.

The workload is a boot and 100,000 reads and writes of one byte. The first pass takes snapshots on its way to
the end; the plain replay of the same recording takes only the first one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from unittest import mock

import vmdebug
from bench.figure import Figure, in_turn
from vmdebug import replaying
from vmdebug.recording import files

RECORDING_GOAL = 1.25
PASS_GOAL = 1.5
IDLE_GOAL_MB = 0.2
IDLE_SECONDS = 10.0
SECONDS = 900.0
ROUNDS = 3
WORK = "dd if=/dev/zero of=/dev/null bs=1 count=100000"


def figures() -> list[Figure]:
    """Time all of it."""
    with tempfile.TemporaryDirectory(prefix="vmd-") as name:
        place = Path(name)
        names = iter(range(1000))
        ours, plain = in_turn(
            lambda: _work(place / f"{next(names)}.vmdrec"), lambda: _work(None), rounds=ROUNDS
        )
        recording = place / "0.vmdrec"
        passed, replayed = in_turn(
            lambda: _replay(recording, replaying.SNAPSHOTS), lambda: _replay(recording, 1), rounds=ROUNDS
        )
        idle = _idle(place / "idle.vmdrec")
    return [
        Figure("record", ours, plain, RECORDING_GOAL, "s", "plain TCG, one CPU"),
        Figure("record-first-pass", passed, replayed, PASS_GOAL, "s", "a replay without snapshots"),
        Figure("record-idle", idle, IDLE_GOAL_MB, 1.0, "MB/s", "the goal, of an idle guest"),
    ]


def _work(recording: Path | None) -> float:
    """Return the seconds of a boot and the work."""
    begin = time.perf_counter()
    with vmdebug.start(
        "builtin", accel="tcg", cpus=1, trace_ready="no", record=recording, timeout=SECONDS
    ) as session:
        session.exec(WORK, timeout=SECONDS, check=True)
        return time.perf_counter() - begin


def _replay(recording: Path, snapshots: int) -> float:
    """Return the seconds of a replay to the end."""
    begin = time.perf_counter()
    with (
        mock.patch.object(replaying, "SNAPSHOTS", snapshots),
        vmdebug.replay(recording, to="end", timeout=SECONDS),
    ):
        return time.perf_counter() - begin


def _idle(recording: Path) -> float:
    """Return how many MB the log of an idle guest grows in a second."""
    with vmdebug.start("builtin", record=recording, timeout=SECONDS) as session:
        session.exec("true", timeout=SECONDS)
        log = files.log(recording)
        begin, before = time.perf_counter(), log.stat().st_size
        time.sleep(IDLE_SECONDS)
        return (log.stat().st_size - before) / 1e6 / (time.perf_counter() - begin)
