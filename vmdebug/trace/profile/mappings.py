"""The mappings of processes over time, from the kernel's records of mmap, execve and fork."""

from __future__ import annotations

import bisect
import re

from vmdebug.trace.profile.raw import Mapped

_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ..x. ([0-9a-f]+) \S+ \d+\s*(.*)$")
"""An executable mapping in /proc/PID/maps."""

_DELETED = " (deleted)"


class Mappings:
    """The executable mappings of processes."""

    def __init__(self) -> None:
        self._mapped: dict[int, list[tuple[int, Mapped]]] = {}
        self._parents: dict[int, tuple[int, int]] = {}
        self._began: dict[int, list[int]] = {}

    def map(self, pid: int, time: int, mapping: Mapped) -> None:
        """Record that a process has mapped a file.

        Args:
            pid: The process.
            time: When, in ns.
            mapping: The mapping.
        """
        self._mapped.setdefault(pid, []).append((time, mapping._replace(pid=pid)))

    def fork(self, pid: int, parent: int, time: int) -> None:
        """Record that a process has begun with the mappings of its parent."""
        if pid != parent:
            self._parents[pid] = (parent, time)
            self._began.setdefault(pid, []).append(time)

    def execute(self, pid: int, time: int) -> None:
        """Record that a process has replaced its mappings by those of another program, which follow."""
        self._began.setdefault(pid, []).append(time)

    def find(self, pid: int, address: int, time: int) -> Mapped | None:
        """Return the mapping of an address in a process at a time; None if it is not known."""
        began = self._began.get(pid, [])
        number = bisect.bisect_right(began, time)
        since = began[number - 1] if number else 0
        for at, mapping in reversed(self._mapped.get(pid, ())):
            if since <= at <= time and mapping.start <= address < mapping.end:
                return mapping
        parent, forked = self._parents.get(pid, (0, 0))
        if parent and since == forked:
            return self.find(parent, address, forked)
        return None


def learn(mappings: Mappings, text: str) -> dict[tuple[int, int], str]:
    """Learn the processes that exist when a profile begins, and return the names of their threads.

    Args:
        mappings: Gets their mappings, at time 0.
        text: For each process, `P PID COMM`, a line `T PID TID COMM` for each thread, and the lines of its
            /proc/PID/maps.
    """
    names: dict[tuple[int, int], str] = {}
    pid = 0
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "P":
            number, _, _ = rest.partition(" ")
            pid = int(number)
        elif kind == "T":
            number, tid, comm = rest.split(" ", 2)
            names[int(number), int(tid)] = comm
        else:
            found = _LINE.match(line)
            if found is not None:
                start, end, offset = (int(each, 16) for each in found.groups()[:3])
                path = found[4].removesuffix(_DELETED)
                mappings.map(pid, 0, Mapped(start, end, offset, path))
    return names
