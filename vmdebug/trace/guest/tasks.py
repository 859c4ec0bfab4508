"""The names of the guest's tasks over time, so that hits need not record them."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence

from vmdebug.trace.guest import pages
from vmdebug.trace.guest.fetches import text_of
from vmdebug.trace.guest.formats import Format
from vmdebug.trace.guest.records import reader
from vmdebug.trace.hit import Task

EVENTS = ("task/task_newtask", "task/task_rename")
"""The tracepoints of include/trace/events/task.h."""

_IDLE = 0
"""The pid of the idle task of each CPU."""


class Tasks:
    """The tasks of a guest.

    Args:
        formats: The formats of `EVENTS`.
        now: A line for each task: its pid and its name, a little after the trace has begun.
    """

    def __init__(self, formats: Sequence[Format], now: str) -> None:
        new, renamed = formats
        read_new, read_renamed = reader(new, ("pid", "comm")), reader(renamed, ("pid", "oldcomm", "newcomm"))
        self.single: dict[int, Task] = {}
        """The tasks that have had one name, by pid."""
        self._history: dict[int, list[tuple[int, Task]]] = {}
        for line in now.splitlines():
            pid, _, name = line.partition(" ")
            if pid.isdigit():
                self.single[int(pid)] = Task(int(pid), _own_name(name))

        def born(page: bytes, at: int, time: int) -> None:
            _, _, pid, comm = read_new(0, page, at)
            self._add(pid, time, "", text_of(comm))

        def named(page: bytes, at: int, time: int) -> None:
            _, _, pid, old, comm = read_renamed(0, page, at)
            self._add(pid, time, text_of(old), text_of(comm))

        self._decoders = {new.id: born, renamed.id: named}

    def add(self, given: Iterable[tuple[int, bytes]]) -> None:
        """Learn names from the pages of `EVENTS`."""
        for _, page in given:
            pages.decode(page, self._decoders)

    def _add(self, pid: int, time: int, before: str, name: str) -> None:
        known = self._history.get(pid)
        if known is None:
            # The task may have been read from /proc with its new name already.
            first = Task(pid, before) if before else self.single.get(pid)
            known = self._history[pid] = [(0, first)] if first is not None else []
            self.single.pop(pid, None)
        bisect.insort(known, (time, Task(pid, name)), key=lambda each: each[0])

    def at(self, pid: int, cpu: int, time: int) -> Task:
        """Return a task as it was named at a time.

        Args:
            pid: Its pid.
            cpu: The CPU that ran it.
            time: The time, in ns.
        """
        if pid == _IDLE:
            return Task(pid, f"swapper/{cpu}")
        known = self._history.get(pid)
        if not known:
            return self.single.setdefault(pid, Task(pid, ""))
        number = bisect.bisect(known, time, key=lambda each: each[0])
        return known[max(number - 1, 0)][1]


def _own_name(name: str) -> str:
    """Return `task->comm`: /proc adds to that of a kworker what it works on (`wq_worker_comm`)."""
    return re.split("[-+]", name, maxsplit=1)[0] if name.startswith("kworker/") else name
