"""A hunt: schedules are run until enough of them have failed, or time is up."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.hunting import minimising, outcome, schedule, statistics
from vmdebug.hunting.cluster import Cluster
from vmdebug.hunting.outcome import Group, Job, Outcome
from vmdebug.hunting.pool import LocalPool
from vmdebug.hunting.schedule import Schedule
from vmdebug.hunting.statistics import Rate
from vmdebug.progress import Report, Step

ATTEMPTS = 3
"""How many failures of a group are repeated under record, until one shows."""


REPEATS = 10
"""How often a failure of a guest with several CPUs is repeated, and how often `--seed` runs one."""


class Pool(Protocol):
    """Runs schedules."""

    def map(self, schedules: Iterable[Schedule]) -> Iterator[Outcome]:
        """Yield the outcomes of schedules as they come."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When a hunt ends: at the first of these.

    Args:
        runs: After so many runs; None: no limit.
        seconds: After so many seconds; runs that are under way are finished. None: no limit.
        failures: After so many failures; None: no limit.
    """

    runs: int | None = None
    seconds: float | None = None
    failures: int | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a hunt has found.

    Args:
        runs: How many runs there were.
        failed: How many failed.
        groups: The failures by cause, the most frequent first.
        seconds: How long it took, on the host.
    """

    runs: int
    failed: int
    groups: list[Group]
    seconds: float

    @property
    def rate(self) -> Rate:
        """The share of runs that failed."""
        return statistics.wilson(self.failed, self.runs)


class Repeats(NamedTuple):
    """How often a schedule has failed again in the same way, of how many repeats."""

    failed: int
    runs: int

    def __str__(self) -> str:
        """Return both, and the rate."""
        return f"{self.failed} of {self.runs} repeats: {statistics.wilson(self.failed, self.runs)}"


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What came of recording a failure.

    Args:
        directory: The recording; None: there is none.
        schedule: The schedule that was recorded last.
        reason: Why there is none.
    """

    directory: Path | None = None
    schedule: Schedule
    reason: str = ""


def opened(job: Job, *, on: str | None, workers: int) -> AbstractContextManager[Pool]:
    """Return the pool of a hunt: this machine's CPUs, or the cluster `on`."""
    return LocalPool(job, workers) if on is None else Cluster(job, on)


def seeds(first: int, *, cpus: int = 1) -> Iterator[Schedule]:
    """Yield the schedules of the seeds from `first` on."""
    return (of_seed(seed, cpus=cpus) for seed in itertools.count(first))


def of_seed(seed: int, *, cpus: int = 1) -> Schedule:
    """Return the schedule of a seed; one with several CPUs has no knobs."""
    return schedule.of_seed(seed) if cpus == 1 else Schedule(seed=seed)


def hunt(
    pool: Pool,
    schedules: Iterable[Schedule],
    limits: Limits,
    *,
    ended: Callable[[Outcome], None],
    report: Report,
) -> Found:
    """Run schedules, and return what was found.

    Args:
        pool: Where they run.
        schedules: The schedules, in order.
        limits: When to end.
        ended: Called with each outcome.
        report: Called with each outcome, too.

    Raises:
        VmdebugError: a run could not be made.
    """
    clock = Deadline.after(limits.seconds if limits.seconds is not None else 1e9)
    done: list[Outcome] = []
    failed = 0

    def enough() -> bool:
        return clock.passed or (limits.failures is not None and failed >= limits.failures)

    wanted = itertools.takewhile(lambda _: not enough(), itertools.islice(schedules, limits.runs))
    report(Step("hunting", 0, limits.runs, note="the guest boots once on each CPU"))
    for each in pool.map(wanted):
        done.append(each)
        failed += each.failed
        ended(each)
        report(Step("hunting", len(done), limits.runs, note=f"{failed} failed"))
        if limits.failures is not None and failed >= limits.failures:
            break
    seconds = clock.seconds - (clock.remaining if limits.seconds is None or not clock.passed else 0.0)
    return Found(runs=len(done), failed=failed, groups=outcome.grouped(done), seconds=round(seconds, 1))


def minimise(pool: Pool, found: Outcome, *, report: Report) -> Schedule:
    """Return the simplest schedule that fails in the same way."""
    tried: dict[Schedule, bool] = {}

    def fails(candidate: Schedule) -> bool:
        if candidate not in tried:
            report(Step("minimising", len(tried) + 1, note=str(candidate)))
            tried[candidate] = any(each.group == found.group for each in pool.map([candidate]))
        return tried[candidate]

    return minimising.minimise(found.schedule, fails)


def repeat(pool: Pool, found: Outcome, *, report: Report) -> Repeats:
    """Repeat a schedule that has failed: with several CPUs it does not give the same run."""
    failed = runs = 0
    for each in pool.map([found.schedule] * REPEATS):
        runs, failed = runs + 1, failed + (each.group == found.group)
        report(Step("repeating", runs, REPEATS, note=f"{failed} failed again"))
    return Repeats(failed, runs)


def record(pool: Pool, job: Job, group: Group, directory: Path, *, report: Report) -> Recorded:
    """Repeat a failure under record; if it does not show, others of its group.

    Args:
        pool: What the hunt ran in. A guest is recorded on this machine.
        job: The job.
        group: The failures.
        directory: The recording that is made.
        report: Called with each attempt.
    """
    tried: list[Schedule] = []
    with contextlib.ExitStack() as held:
        local = pool if isinstance(pool, LocalPool) else held.enter_context(LocalPool(job, 1))
        for each in group.outcomes[:ATTEMPTS]:
            report(Step("recording", note=str(each.schedule)))
            tried.append(each.schedule)
            try:
                if local.record(each.schedule, directory).group == group.name:
                    return Recorded(directory=directory, schedule=each.schedule)
            except VmdebugError as error:
                return Recorded(schedule=each.schedule, reason=f"it cannot be recorded: {error.message}")
    seeds = ", ".join(str(each.seed) for each in tried)
    return Recorded(schedule=tried[-1], reason=f"it did not show under record, with the seeds {seeds}")
