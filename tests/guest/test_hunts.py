"""Hunts find a race of a kernel module, and the same seed finds it again, also on a dask cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.hunting import schedule
from vmdebug.hunting.cluster import Cluster
from vmdebug.hunting.guest import HuntedGuest
from vmdebug.hunting.outcome import Job
from vmdebug.hunting.pool import LocalPool
from vmdebug.hunting.schedule import Schedule
from vmdebug.process import PIPE, Child
from vmdebug.sources import kbuild

EXAMPLE = Path(__file__).parents[2] / "examples/hunt_race"
STATE = "cat /proc/uptime; grep ctxt /proc/stat; echo $RANDOM$RANDOM"
RACE = "add() { i=0; while [ $i -lt 20 ]; do read n </tmp/n; echo $((n + 1)) >/tmp/n; i=$((i + 1)); done; }"
SHORT = f"""
RACE = {f"echo 0 >/tmp/n; {RACE}; add & add & wait; cat /tmp/n"!r}

def main(session):
    assert int(session.exec(RACE).stdout) == 40
"""


@pytest.fixture(scope="module")
def race(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("race")
    for name in ("race.c", "Kbuild"):
        shutil.copy(EXAMPLE / name, directory)
    assert kernel.vmlinux is not None
    process.run(
        ["make", "-C", kernel.vmlinux.parent, f"M={directory}", "KBUILD_MODPOST_WARN=1", "modules"],
        env=kbuild.clean_environment(),
        deadline=Deadline.after(240),
    )
    return directory / "race.ko"


def vmdebug(*words: str | Path, status: int) -> process.Completed:
    done = process.run(
        [sys.executable, "-m", "vmdebug.cli", *words], check=False, deadline=Deadline.after(240)
    )
    assert done.status == status, done.stdout + done.stderr
    return done


def test_a_double_free_is_found_and_its_seed_repeats_it(race: Path) -> None:
    words = ("hunt", EXAMPLE / "double_free.py", "--module", race, "--append", "slub_debug=FZPU", "--json")
    found = json.loads(vmdebug(*words, "--until-failure", "--no-minimise", status=1).stdout)
    (group,) = found["groups"]
    assert "Object already free" in group["headline"]
    assert "race.c" in group["text"]
    again = json.loads(vmdebug(*words, "--seed", str(group["seeds"][0]), status=1).stdout)
    assert again["groups"] == [group]


def test_a_schedule_gives_the_same_run_and_another_seed_another(builtin: LaunchSpec) -> None:
    def run(made: Schedule) -> list[str]:
        with guest.session(made) as session:
            return [
                session.exec(command).stdout for command in (RACE, STATE, f"{RACE}; add & add & wait", STATE)
            ]

    one = Schedule(seed=1, shift=6, gap=1000)
    with HuntedGuest(builtin, lambda session: session.exec("echo 0 >/tmp/n", check=True)) as guest:
        first = run(one)
        assert run(one) == first
        assert run(Schedule(seed=2, shift=5)) != first
    with HuntedGuest(builtin, lambda session: session.exec("echo 0 >/tmp/n", check=True)) as guest:
        assert run(one) == first, "another template gives another run"


def test_input_and_output_of_any_size_pass(builtin: LaunchSpec) -> None:
    data = "".join(f"{number} ~}}\n" for number in range(20000))
    with HuntedGuest(builtin) as guest, guest.session(Schedule(seed=1)) as session:
        done = session.exec("cat; echo err >&2; exit 3", stdin=data)
        assert (done.stdout, done.stderr, done.status) == (data, "err\n", 3)


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
