"""Runs schedules on a dask.distributed cluster; its scheduler repeats what a dead worker had.

Each dask worker process boots and saves the guest once, at its first run. It needs vmdebug, QEMU, and the
guest's files at the same paths; the script is sent to it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from vmdebug import extras, guest
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError, VmError
from vmdebug.hunting.outcome import Job, Outcome, line_of
from vmdebug.hunting.run import Runner
from vmdebug.hunting.schedule import Schedule

SCHEME = "dask://"
CONNECT_SECONDS = 10.0
RETRIES = 5
"""How often the scheduler repeats a run that raised. It also repeats those of workers that died."""

_runners: dict[bytes, Runner] = {}
_lock = threading.Lock()


def run_remotely(job: bytes, schedule: bytes) -> bytes:
    """Run a schedule in a dask worker.

    Args:
        job: The job, as JSON.
        schedule: The schedule, as JSON.

    Returns:
        The outcome, as JSON.
    """
    with _lock:  # one guest a worker process
        if job not in _runners:
            for other in [*_runners]:
                _runners.pop(other).__exit__(None, None, None)
            runner = Runner(guest.decode(job, Job))
            runner.__enter__()
            _runners[job] = runner
        return guest.encode(_runners[job].run(guest.decode(schedule, Schedule)))


class Cluster:
    """A cluster; a context manager that disconnects and cancels what has not run.

    Args:
        job: What to run.
        address: dask://HOST:PORT of its scheduler.

    Raises:
        UsageError: the address is wrong, or nobody answers there.
        HostError: dask.distributed is not installed.
    """

    def __init__(self, job: Job, address: str) -> None:
        if not address.startswith(SCHEME) or ":" not in address.removeprefix(SCHEME):
            raise UsageError(
                f"--on {address}: it is no cluster", hint="name its scheduler: --on dask://HOST:8786"
            )
        self._job = line_of(job)
        self._address = f"tcp://{address.removeprefix(SCHEME)}"
        self._client: Any = None
        self._futures: set[Any] = set()

    def __enter__(self) -> Self:
        distributed = extras.HUNT.need(f"--on {SCHEME}{self._address.removeprefix('tcp://')}")
        try:
            made: Any = distributed.Client
            self._client = made(self._address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no dask scheduler answers at {self._address}: {error}",
                hint="start one: dask scheduler; and workers: dask worker HOST:8786 --nthreads 1",
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._client.cancel([*self._futures])
        self._client.close(timeout=CONNECT_SECONDS)

    def wait(self, workers: int, deadline: Deadline) -> None:
        """Wait until so many workers have joined.

        Raises:
            DeadlineError: they have not.
        """
        what = f"{workers} workers to join {self._address}"
        try:
            self._client.wait_for_workers(workers, timeout=deadline.left(what))
        except TimeoutError as error:
            raise deadline.error(what) from error

    def map(self, schedules: Iterable[Schedule]) -> Iterator[Outcome]:
        """Yield the outcomes of schedules as they come, with some more under way than there are workers.

        Raises:
            VmError: a run could not be made, or the cluster has no workers.
            UsageError: the script uses what a hunt cannot give.
        """
        import distributed  # noqa: PLC0415 - as above

        as_completed: Any = distributed.as_completed
        source = iter(schedules)
        threads = sum(self._client.nthreads().values())
        if not threads:
            raise VmError(
                f"the cluster {self._address} has no workers",
                hint="start some: dask worker HOST:8786 --nthreads 1 --nworkers 2",
            )
        waiting = as_completed(loop=self._client.loop)
        for schedule in _first(source, 2 * threads):
            waiting.add(self._submit(schedule))
        for future in waiting:
            self._futures.discard(future)
            try:
                outcome = guest.decode(future.result(), Outcome)
            except UsageError:
                raise
            except Exception as error:
                raise VmError(f"a run on the cluster failed: {error}") from error
            for schedule in _first(source, 1):
                waiting.add(self._submit(schedule))
            yield outcome

    def _submit(self, schedule: Schedule) -> Any:
        future = self._client.submit(
            run_remotely, self._job, guest.encode(schedule), pure=False, retries=RETRIES
        )
        self._futures.add(future)
        return future


def _first(source: Iterator[Schedule], count: int) -> Iterator[Schedule]:
    for _ in range(count):
        schedule = next(source, None)
        if schedule is None:
            return
        yield schedule
