"""A worker process of a hunt: reads tasks from its standard input, and writes outcomes.

    python -m vmdebug.hunting.worker

The first line is the job. Each further line is a task; the answer is one line: an outcome, or an error.
At the end of its input, which comes however the hunt ends, the worker ends at once; its guardian ends its VM.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import msgspec

from vmdebug import guest
from vmdebug.errors import VmdebugError
from vmdebug.hunting.outcome import Job, Outcome
from vmdebug.hunting.run import Runner
from vmdebug.hunting.schedule import Schedule


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A line for a worker: a run.

    Args:
        schedule: The schedule.
        record: The directory of the recording that is made of it; "": none is.
    """

    schedule: Schedule
    record: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a worker.

    Args:
        outcome: What a run came to; None: it could not be made.
        message: Why not.
        hint: What to do.
        detail: Evidence.
        status: The exit status of that error.
    """

    outcome: Outcome | None = None
    message: str = ""
    hint: str = ""
    detail: str = ""
    status: int = 1


def line(value: object) -> bytes:
    """Return a value as a line."""
    return msgspec.json.encode(value) + b"\n"


def main() -> None:
    """Do tasks until the input ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the script prints is no answer
    job = guest.decode(sys.stdin.buffer.readline(), Job)
    wanted: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(wanted,), daemon=True).start()
    try:
        with Runner(job) as runner:
            while True:
                task = msgspec.json.decode(wanted.get(), type=Task)
                _answer(answers, Answer(outcome=_done(runner, task)))
    except VmdebugError as error:
        _answer(
            answers,
            Answer(message=error.message, hint=error.hint, detail=error.detail, status=error.exit_status),
        )


def _done(runner: Runner, task: Task) -> Outcome:
    return runner.record(task.schedule, Path(task.record)) if task.record else runner.run(task.schedule)


def _answer(answers: BinaryIO, answer: Answer) -> None:
    answers.write(line(answer))


def _read(wanted: queue.SimpleQueue[bytes]) -> None:
    for each in sys.stdin.buffer:
        wanted.put(each)
    os._exit(0)


if __name__ == "__main__":
    main()
