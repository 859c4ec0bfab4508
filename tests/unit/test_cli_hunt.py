"""`hunt`: its arguments, what it prints, and its exit status."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit import cli_doubles
from vmdebug import cli
from vmdebug.guest import OwnMachine
from vmdebug.hunting import schedule as schedules
from vmdebug.hunting.hunt import Recorded
from vmdebug.hunting.outcome import Group, Job, Outcome
from vmdebug.hunting.schedule import Schedule
from vmdebug.progress import Report

HOLDS = ("CPU 1 held at kfree for 3 ms", "CPU 0 held at kfree for 1 ms")


class Pool:
    """Runs with disturbances fail; what they were asked is kept."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.workers = 0
        self.ran: list[Schedule] = []
        self.recorded: list[Path] = []
        self.reason = ""

    def record(
        self,
        pool: Pool,
        job: Job,
        group: Group,
        directory: Path,
        *,
        report: Report,
    ) -> Recorded:
        assert pool is self
        self.recorded.append(directory)
        return Recorded(
            directory=None if self.reason else directory,
            schedule=group.outcomes[0].schedule,
            reason=self.reason,
        )

    def map(self, wanted: Iterable[Schedule]) -> Iterator[Outcome]:
        for each in wanted:
            self.ran.append(each)
            failed = Outcome(
                schedule=each,
                kind="error",
                headline="an update is lost",
                text="lost",
                group="lost",
                holds=HOLDS if self.job is not None and self.job.hold else (),
            )
            yield failed if each.gap or failed.holds else Outcome(schedule=each)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    """The pool of every hunt of the test; the guest is one that can be hunted."""
    made = Pool()

    @contextlib.contextmanager
    def opened(job: Job, *, on: str | None, workers: int) -> Iterator[Pool]:
        assert on is None
        made.job, made.workers = job, workers
        yield made

    own = OwnMachine(initrd=Path("/i.cpio"))
    spec = msgspec.structs.replace(cli_doubles.spec(), machine=own, cpus=1)
    monkeypatch.setattr("vmdebug.hunting.hunt.opened", opened)
    monkeypatch.setattr("vmdebug.hunting.hunt.record", made.record)
    monkeypatch.setattr("vmdebug.sources.resolve", lambda *_, **__: spec)
    return made


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "race.py"
    path.write_text("def main(session, args):\n    pass\n")
    return path


def hunted(capsys: pytest.CaptureFixture[str], *words: str | Path, status: int) -> Any:
    assert cli.status_of(["hunt", "--json", *map(str, words)]) == status
    return json.loads(capsys.readouterr().out)


def test_a_hundred_seeds_by_default(pool: Pool, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = hunted(capsys, script, "--no-minimise", "-j", "3", "--", "one", status=1)
    assert pool.ran == [schedules.of_seed(seed) for seed in range(1, 101)]
    assert pool.workers == 3
    assert pool.job is not None
    assert pool.job.arguments == ("one",)
    assert found["failed"] == sum(1 for each in pool.ran if each.gap)
    assert found["simplest"] is None


def test_it_ends_at_the_first_failure_and_simplifies_it(
    pool: Pool, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = hunted(capsys, script, "--until-failure", "--first-seed", "7", status=1)
    first = next(schedules.of_seed(seed) for seed in range(7, 99) if schedules.of_seed(seed).gap)
    assert found["groups"][0]["seeds"] == [first.seed]
    assert schedules.parse(found["simplest"]) == Schedule(seed=first.seed, gap=first.gap, first=0, count=1)


@pytest.mark.parametrize(
    ("words", "ran"),
    [
        (("--seed", "1"), schedules.of_seed(1)),
        (("--schedule", "seed=9,shift=5,gap=300,count=2"), Schedule(seed=9, shift=5, gap=300, count=2)),
    ],
)
def test_one_schedule_is_repeated(
    pool: Pool, script: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], ran: Schedule
) -> None:
    hunted(capsys, script, *words, status=1)
    assert pool.ran == [ran]
    assert pool.workers == 1


def test_runs_that_pass_exit_with_0_and_a_person_reads_the_rate(
    pool: Pool, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["hunt", str(script), "--schedule", "seed=1"]) == 0
    assert "0 of 1 runs failed: 0.0%" in capsys.readouterr().out
    assert pool.ran == [Schedule(seed=1)]


def test_how_to_repeat_a_failure_names_the_guest(
    pool: Pool, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["hunt", str(script), "--guest", "builtin", "--append", "a b", "--runs", "1", "--no-minimise"]
    assert cli.status_of(words) == 1
    assert f"vmdebug hunt {script} --guest builtin --append 'a b' --seed 1" in capsys.readouterr().err
    assert len(pool.ran) == 1


def test_the_first_failure_is_recorded_and_how_to_replay_it_is_said(
    pool: Pool, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["hunt", str(script), "--runs", "1", "--no-minimise"]
    assert cli.status_of([*words, "--record", str(tmp_path / "one")]) == 1
    assert pool.recorded == [tmp_path / "one.vmdrec"]
    assert f"vmdebug replay {tmp_path}/one.vmdrec --to failure" in capsys.readouterr().err
    assert cli.status_of(words) == 1
    capsys.readouterr()
    assert pool.recorded[1].name.startswith("race-")
    found = hunted(capsys, script, "--runs", "1", "--no-minimise", status=1)
    assert found["recording"] == str(pool.recorded[2])


def test_a_failure_that_cannot_be_recorded_is_said_and_the_status_stays(
    pool: Pool, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.reason = "it did not show under record, with the seeds 1"
    assert cli.status_of(["hunt", str(script), "--runs", "1", "--no-minimise"]) == 1
    assert f"there is no recording of the failure: {pool.reason}" in capsys.readouterr().err
    found = hunted(capsys, script, "--runs", "1", "--no-minimise", status=1)
    assert (found["recording"], found["not_recorded"]) == (None, pool.reason)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("--no-record", "--runs", "1"), 1),
        (("--seed", "1"), 1),
        (("--schedule", "seed=1", "--record", "x"), 0),
    ],
)
def test_nothing_is_recorded_unless_it_is_wanted_and_fails(
    pool: Pool,
    script: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    status: int,
) -> None:
    found = hunted(capsys, script, *words, status=status)
    assert found["recording"] is None
    assert not pool.recorded


def test_cpus_are_held_and_the_first_failure_is_repeated_and_not_recorded(
    pool: Pool, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--hold", "kfree,race.c:26", "--hold", "iput", "--runs", "3")
    found = hunted(capsys, script, *words, status=1)
    assert pool.job is not None
    assert (pool.job.cpus, pool.job.hold) == (2, ("kfree", "race.c:26", "iput"))
    assert pool.ran == [Schedule(seed=seed) for seed in (1, 2, 3)] + [Schedule(seed=1)] * 10
    assert found["repeats"] == {"runs": 10, "failed": 10}
    assert found["groups"][0]["holds"] == [*HOLDS]
    assert not pool.recorded


def test_a_person_reads_the_holds_and_the_rate_of_the_repeats(
    pool: Pool, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.status_of(["hunt", str(script), "--hold", "kfree", "--runs", "1"]) == 1
    said = capsys.readouterr()
    assert "holds in the run of seed 1:\n  CPU 1 held at kfree for 3 ms\n" in said.out
    assert "its seed failed again in 10 of 10 repeats: 100.0% (95 %: 72.2% to 100.0%)" in said.err
    assert f"vmdebug hunt {script} --hold kfree --seed 1" in said.err
    assert len(pool.ran) == 11


def test_a_seed_with_several_cpus_is_run_ten_times(
    pool: Pool, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = hunted(capsys, script, "--hold", "kfree", "--seed", "7", status=1)
    assert pool.ran == [Schedule(seed=7)] * 10
    assert (found["failed"], found["repeats"]) == (10, None)
    hunted(capsys, script, "--cpus", "3", "--seed", "7", "--runs", "2", status=0)
    assert pool.ran[10:] == [Schedule(seed=7)] * 2


@pytest.mark.parametrize(
    "words",
    [
        ("--hold", "kfree", "--cpus", "1"),
        ("--hold", "kfree", "--record", "x"),
        ("--cpus", "2", "--schedule", "seed=1"),
    ],
)
def test_what_several_cpus_exclude_is_refused(pool: Pool, script: Path, words: tuple[str, ...]) -> None:
    assert cli.status_of(["hunt", str(script), *words]) == 2
    assert not pool.ran


def test_a_place_that_is_taken_is_refused_before_the_hunt(pool: Pool, script: Path, tmp_path: Path) -> None:
    (tmp_path / "one.vmdrec").mkdir()
    assert cli.status_of(["hunt", str(script), "--record", str(tmp_path / "one")]) == 2
    assert not pool.ran


@pytest.mark.parametrize(
    "words",
    [
        ("--record", "x", "--no-record"),
        ("--seed", "1", "--schedule", "seed=1"),
        ("--seed", "1", "--runs", "2"),
        ("--schedule", "x"),
    ],
)
def test_what_excludes_each_other_is_refused(script: Path, words: tuple[str, ...]) -> None:
    assert cli.status_of(["hunt", str(script), *words]) == 2
