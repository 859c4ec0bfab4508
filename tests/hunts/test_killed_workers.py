"""A worker that is killed loses no result of a hunt: `make test-hunts`."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.guest_options import GuestOptions
from vmdebug.hunting import schedule
from vmdebug.hunting.cluster import Cluster
from vmdebug.hunting.outcome import Job
from vmdebug.hunting.pool import LocalPool
from vmdebug.process import PIPE, Child


@pytest.fixture(autouse=True)
def _private_runtime(runtime: Path) -> None:
    """Run the VMs of each test in a private runtime directory."""


RACE = "add() { i=0; while [ $i -lt 20 ]; do read n </tmp/n; echo $((n + 1)) >/tmp/n; i=$((i + 1)); done; }"
SHORT = f"""
RACE = {f"echo 0 >/tmp/n; {RACE}; add & add & wait; cat /tmp/n"!r}

def main(session):
    assert int(session.exec(RACE).stdout) == 40
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[Child]]]:
    """A dask scheduler and two workers, each a process."""
    dask = Path(sys.executable).with_name("dask")
    env = {**os.environ, "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "false"}
    where = ("--local-directory", tmp_path)
    with ExitStack() as held:
        started = held.enter_context(
            process.spawn(
                [dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
                env=env,
                stderr=PIPE,
            )
        )
        assert started.stderr is not None
        address = ""
        for line in started.stderr:
            if found := re.search(r"Scheduler at:\s+tcp://(\S+)", line.decode()):
                address = found[1]
                break
        words: list[str | Path] = [
            dask,
            "worker",
            f"tcp://{address}",
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            *where,
        ]
        workers = [held.enter_context(process.spawn(words, env=env)) for _ in range(2)]
        yield f"dask://{address}", workers


def test_a_killed_worker_of_a_cluster_loses_no_result(cluster: tuple[str, list[Child]]) -> None:
    address, workers = cluster
    job = Job(options=GuestOptions(source="builtin"), script="/race.py", text=SHORT)
    seen: list[int] = []
    killed: list[int] = []
    with Cluster(job, address) as pool:
        pool.wait(2, Deadline.after(60))
        for outcome in pool.map([schedule.of_seed(seed) for seed in range(1, 13)]):
            seen.append(outcome.schedule.seed)
            if not killed:
                workers[0].send_signal(signal.SIGKILL)
                killed.append(workers[0].pid)
    assert sorted(seen) == list(range(1, 13))


def test_a_killed_worker_process_loses_no_result() -> None:
    job = Job(options=GuestOptions(source="builtin"), script="/race.py", text=SHORT)
    seen: list[int] = []
    with LocalPool(job, 1) as pool:
        for outcome in pool.map([schedule.of_seed(seed) for seed in range(1, 4)]):
            if not seen:
                os.kill(pool.pids()[0], signal.SIGKILL)
            seen.append(outcome.schedule.seed)
    assert seen == [1, 2, 3]
