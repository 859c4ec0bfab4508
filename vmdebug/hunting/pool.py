"""Runs schedules on all CPUs of this machine: a worker process for each, replaced if it dies."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from vmdebug import process
from vmdebug.errors import VmdebugError
from vmdebug.hunting import outcome
from vmdebug.hunting.outcome import Job, Outcome
from vmdebug.hunting.schedule import Schedule
from vmdebug.hunting.worker import Answer, Task, line
from vmdebug.process import PIPE, Child

TRIES = 3
"""How many workers may die of the same schedule."""


class WorkerError(VmdebugError):
    """A run could not be made."""


_Done = queue.SimpleQueue[Outcome | VmdebugError]


class LocalPool:
    """Worker processes; a context manager that ends them.

    Args:
        job: What to run.
        count: Number of workers.
    """

    def __init__(self, job: Job, count: int) -> None:
        self._job = job
        self._count = count
        self._wanted: queue.SimpleQueue[tuple[Task, _Done] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._children: set[Child] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        for _ in range(self._count):
            thread = threading.Thread(target=self._serve, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            children = [*self._children]
        for child in children:
            with contextlib.suppress(OSError, ValueError):
                assert child.stdin is not None  # noqa: S101 - a pipe
                child.stdin.close()  # then it ends at once
        for _ in self._threads:
            self._wanted.put(None)
        for thread in self._threads:
            thread.join(process.TERM_SECONDS)
        for child in children:
            _finish(child)

    def pids(self) -> list[int]:
        """Return the pids of the workers that run."""
        with self._lock:
            return [child.pid for child in self._children]

    def map(self, schedules: Iterable[Schedule]) -> Iterator[Outcome]:
        """Yield the outcomes of schedules as they come, with as many under way as there are workers.

        Raises:
            VmdebugError: a run could not be made.
        """
        # Of this call only: a caller that had enough left runs under way, whose outcomes nobody wants.
        source, under_way, done = iter(schedules), 0, _Done()
        while True:
            while under_way < self._count and (schedule := next(source, None)) is not None:
                self._wanted.put((Task(schedule=schedule), done))
                under_way += 1
            if not under_way:
                return
            yield _outcome(done)
            under_way -= 1

    def record(self, schedule: Schedule, directory: Path) -> Outcome:
        """Repeat the run of a schedule under record; see `Runner.record`.

        Raises:
            VmdebugError: it could not be made, or the guest cannot be recorded.
        """
        done = _Done()
        self._wanted.put((Task(schedule=schedule, record=str(directory)), done))
        return _outcome(done)

    def _serve(self) -> None:
        """Give tasks to a worker, and replace it when it dies."""
        child: Child | None = None
        while (wanted := self._wanted.get()) is not None:
            task, done = wanted
            for last in (*[False] * (TRIES - 1), True):
                try:
                    child = child or self._start()
                    done.put(_ask(child, task))
                    break
                except (OSError, ValueError, EOFError, VmdebugError) as error:
                    self._end(child)
                    child = None
                    if self._closed:
                        return
                    if isinstance(error, WorkerError):
                        done.put(error)
                        break
                    if last:
                        done.put(
                            WorkerError(
                                f"{TRIES} workers died of the schedule {task.schedule}", detail=str(error)
                            )
                        )

    def _start(self) -> Child:
        with self._lock:
            if self._closed:
                raise EOFError
            child = process.start(
                [sys.executable, "-m", "vmdebug.hunting.worker"],
                env=os.environ,
                stdin=PIPE,
                stdout=PIPE,
                stderr=sys.stderr.buffer,
            )
            self._children.add(child)
        _stream(child.stdin).write(outcome.line_of(self._job))
        _stream(child.stdin).flush()
        return child

    def _end(self, child: Child | None) -> None:
        if child is not None:
            with self._lock:
                self._children.discard(child)
            _finish(child)


def _outcome(done: _Done) -> Outcome:
    found = done.get()
    if isinstance(found, VmdebugError):
        raise found
    return found


def _finish(child: Child) -> None:
    """End a worker, and close its pipes."""
    process.end_group(child)
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):  # it has died with a schedule unread
            _stream(pipe).close()


def _ask(child: Child, task: Task) -> Outcome:
    stdin = _stream(child.stdin)
    stdin.write(line(task))
    stdin.flush()
    said = _stream(child.stdout).readline()
    if not said:
        raise EOFError("the worker ended")
    answer = msgspec.json.decode(said, type=Answer)
    if answer.outcome is None:
        error = WorkerError(answer.message, hint=answer.hint, detail=answer.detail)
        error.exit_status = answer.status  # type: ignore[misc] # that of the worker's error
        raise error
    return answer.outcome


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 - a pipe
    return stream
