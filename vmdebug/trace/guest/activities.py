"""Records what the guest's scheduler and interrupts do, in an instance of tracefs of its own.

The instance of the hits leaves out the tasks of vmdebug; here they are like others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmdebug.deadline import Deadline
from vmdebug.errors import StateError
from vmdebug.trace.activity import TRACEPOINTS, Activity
from vmdebug.trace.guest import formats, pages
from vmdebug.trace.guest.fetches import FIRST_FIELD, PID, text_of
from vmdebug.trace.guest.formats import Format
from vmdebug.trace.guest.records import reader
from vmdebug.trace.guest.stream import CommandError, Reader


class Activities:
    """What the guest's CPUs do; makes values of the pages of its ring buffers.

    Args:
        groups: See `TRACEPOINTS`.
        instance: The name of the instance.
        vm: The VM's name, for errors.
    """

    def __init__(self, groups: Sequence[str], instance: str, vm: str) -> None:
        self.instance = instance
        self._groups = tuple(groups)
        self._vm = vm
        self._began = 0
        self._cpu = 0
        self._decoders: dict[int, pages.Decode] = {}
        self._found: list[Activity] = []

    def enable(self, link: Reader, began: int, deadline: Deadline) -> None:
        """Record the tracepoints that the guest's kernel has.

        Args:
            link: The reader in the guest.
            began: When the trace began, in ns of the guest's monotonic clock.
            deadline: When the guest must have answered.

        Raises:
            StateError: the kernel has none of a group.
        """
        self._began = began
        for group in self._groups:
            names = [each.replace(":", "/") for each in TRACEPOINTS[group]]
            answers = link.answers(*(f"read events/{each}/format" for each in names), deadline=deadline)
            there = [name for name, found in zip(names, answers, strict=True) if isinstance(found, bytes)]
            if not there:
                raise StateError(
                    f"the kernel of {self._vm} has none of the tracepoints {', '.join(TRACEPOINTS[group])}",
                    hint="build it with the fragment `trace`: vmdebug kernel config -f trace",
                )
            for (where, fields), found in zip(TRACEPOINTS[group].items(), answers, strict=True):
                if not isinstance(found, CommandError):
                    self._learn(where.partition(":")[2], fields, formats.parse(found.decode()))
            directory = f"instances/{self.instance}/events"
            link.ask(*(f"write {directory}/{each}/enable 1" for each in there), deadline=deadline)

    def _learn(self, event: str, wanted: Sequence[str], form: Format) -> None:
        names = [each for each in wanted if each in form.places]
        read = reader(form, names)
        texts = {name for name in names if form.places[name].is_text}

        def decode(page: bytes, at: int, time: int) -> None:
            if time < self._began:
                return
            record = read(self._cpu, page, at)
            fields: dict[str, int | str] = {
                name: text_of(value) if name in texts else value
                for name, value in zip(names, record[FIRST_FIELD:], strict=True)
            }
            self._found.append(Activity(event, (time - self._began) / 1e9, self._cpu, record[PID], fields))

        self._decoders[form.id] = decode

    def add(self, given: Iterable[tuple[int, bytes]]) -> tuple[Activity, ...]:
        """Return what pages have, in order of time.

        Args:
            given: The CPU and the bytes of each page.
        """
        self._found = []
        for self._cpu, page in given:
            pages.decode(page, self._decoders)
        return tuple(sorted(self._found, key=lambda each: each.time))
