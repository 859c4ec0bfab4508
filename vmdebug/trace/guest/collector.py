"""The collector that uses the guest's own tracefs."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, StateError, VmdebugError
from vmdebug.trace.collector import Batch, Feature
from vmdebug.trace.guest import files, formats, tasks
from vmdebug.trace.guest.activities import Activities
from vmdebug.trace.guest.event_group import EventGroup, read_format, unable
from vmdebug.trace.guest.events import Event
from vmdebug.trace.guest.hits import Hits
from vmdebug.trace.guest.stacks import Stacks
from vmdebug.trace.guest.stream import Begin, CommandError, Reader
from vmdebug.trace.guest.tasks import Tasks
from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Wanted

_NAMES_KB = 256
"""The size of each CPU's ring buffer for the names of tasks."""


class GuestCollector:
    """Collects one trace with kprobe events and tracepoints of the guest's kernel.

    Args:
        begin: Starts the reader in the guest.
        vm: The VM's name, for errors.
        traced: The events of the trace.
        notes: What is not recorded, and why.
        stacks: Names the addresses of the kernel.
        running: Returns whether the guest runs.
        timeout: Seconds for the trace to begin, and to end.
    """

    name = "the guest's kernel"
    cannot: Mapping[Feature, str] = {}

    def __init__(
        self,
        begin: Begin,
        vm: str,
        traced: Sequence[Event],
        *,
        notes: Sequence[str],
        stacks: Stacks,
        running: Callable[[], bool],
        timeout: float,
    ) -> None:
        self._begin = begin
        self._vm = vm
        self._events = tuple(traced)
        self._notes = list(notes)
        self._stacks = stacks
        self._running = running
        self._timeout = timeout
        self._wanted = Wanted(())
        self._reader: Reader | None = None
        self._hits: Hits | None = None
        self._given = 0
        self._started = 0.0
        self._cpus = [0]
        self._tasks: Tasks
        self._group: EventGroup
        self._late: list[str] = []
        self._activities: Activities | None = None
        self._mark = secrets.token_hex(4)
        self._instance = f"vmdebug-{self._mark}"

    @property
    def _directory(self) -> str:
        return f"instances/{self._instance}"

    @property
    def _recording(self) -> tuple[str, ...]:
        """The instances that record while the trace runs: of the hits, and of what else the CPUs do."""
        return (self._instance, *((self._activities.instance,) if self._activities is not None else ()))

    @property
    def _names(self) -> str:
        """The instance that records the names of tasks."""
        return f"{self._instance}-names"

    def start(self, wanted: Wanted) -> Batch:
        """Set up the events in the guest; see `Collector.start`.

        Raises:
            StateError: the guest's kernel has no kprobe events, or refuses a place.
            VmError: the guest cannot run the reader.
        """
        self._wanted = wanted
        deadline = Deadline.after(self._timeout)
        reader = Reader(self._begin)
        try:
            ours = self._greet(reader, deadline)
            self._prepare(reader, ours, deadline)
        except BaseException:
            with contextlib.suppress(VmdebugError):
                reader.finish()
            raise
        self._reader = reader
        return Batch(notes=tuple(self._notes), started=self._started)

    def _greet(self, reader: Reader, deadline: Deadline) -> tuple[int, ...]:
        """Return the pids of the reader and the agent."""
        try:
            ours = reader.greet(deadline)
        except CommandError as error:
            raise unable(error, self._vm) from error
        return ours

    @property
    def _counts_only(self) -> bool:
        """Whether the kernel counts the hits."""
        wanted = self._wanted
        return wanted.count_only and not wanted.when and all(each.definition for each in self._events)

    def _prepare(self, reader: Reader, ours: Sequence[int], deadline: Deadline) -> None:
        """Make the events and the instances, and let them record.

        Args:
            reader: The reader.
            ours: The pids of the reader and the agent: what brings the hits must cause none itself.
            deadline: When the guest must have done it.
        """
        wanted, directory = self._wanted, self._directory
        group = EventGroup(reader, self._vm, wanted, self._events, mark=self._mark, directory=directory)
        self._group = group
        memory, cpus = reader.ask("host /proc/meminfo", "host /proc/cpuinfo", deadline=deadline)
        self._cpus = files.cpus(cpus.decode())
        if wanted.activity:
            self._activities = Activities(wanted.activity, f"{self._instance}-activity", self._vm)
        size = files.buffer_size(memory.decode(), len(self._cpus) * len(self._recording))
        sizes = dict.fromkeys(self._recording, size)
        self._instances(reader, {**sizes, self._names: _NAMES_KB}, deadline)
        # Linux 5.7 and later has the file.
        reader.answers(
            f"write {directory}/set_event_notrace_pid {' '.join(map(str, ours))}", deadline=deadline
        )
        group.define(deadline)
        stack = None
        if wanted.backtrace:
            _, text, modules = reader.ask(
                f"write {directory}/options/stacktrace 1",
                "read events/ftrace/kernel_stack/format",
                "modules",
                deadline=deadline,
            )
            stack = formats.parse(text.decode())
            self._stacks.learn_modules(modules.decode())
        described = group.formats(deadline)
        filtered = group.filter(deadline)
        self._tasks = self._named(reader, deadline)
        group.enable(deadline)
        (stats,) = reader.ask(f"read {directory}/per_cpu/cpu0/stats", deadline=deadline)
        began, self._started = files.now(stats.decode()), time.monotonic()
        self._hits = Hits(
            wanted,
            described,
            tasks=self._tasks,
            stack=stack,
            began=began,
            symbolize=self._stacks,
            filtered=filtered,
        )
        if self._activities is not None:
            self._activities.enable(reader, began, deadline)
            reader.send(f"go S {self._activities.instance}")
        if not self._counts_only:
            reader.send(f"go D {self._instance}", f"go N {self._names}")
            reader.ask(
                *(f"write instances/{each}/tracing_on 1" for each in self._recording), deadline=deadline
            )

    def _instances(self, reader: Reader, sizes: Mapping[str, int], deadline: Deadline) -> None:
        """Make instances that do not record yet, with the sizes of their ring buffers in KiB."""
        for name, size in sizes.items():
            reader.ask(
                f"instance {name}",
                f"write instances/{name}/tracing_on 0",
                f"write instances/{name}/trace_clock mono",
                f"write instances/{name}/buffer_size_kb {size}",
                f"write instances/{name}/options/overwrite 0",
                deadline=deadline,
            )

    def _named(self, reader: Reader, deadline: Deadline) -> Tasks:
        """Return the guest's tasks, and record the names of new ones."""
        known = [read_format(reader, each, deadline) for each in tasks.EVENTS]
        if self._counts_only:
            return Tasks(known, "")
        *_, now = reader.ask(
            *(f"write instances/{self._names}/events/{each}/enable 1" for each in tasks.EVENTS),
            f"write instances/{self._names}/tracing_on 1",
            "tasks",
            deadline=deadline,
        )
        return Tasks(known, now.decode(errors="replace"))

    def take(self) -> Batch:
        """Return the hits since the last batch; the guest keeps running."""
        reader, hits = self._opened()
        if self._counts_only:
            return self._counted(reader, Deadline.after(self._timeout))
        found = reader.take()
        self._tasks.add(found.names)
        return self._batch(hits.add(found.pages, found.complete), reader, found.activity)

    def stop(self) -> Batch:
        """End the trace, and return the remaining hits once the guest has removed its events."""
        reader, hits = self._opened()
        self._reader = None
        if not self._running():
            reader.abandon()
            self._late.append(
                "the guest is stopped: it removes its events once it runs, and hits that it had not sent are"
                " lost"
            )
            return self._rest(reader, hits)
        deadline = Deadline.after(self._timeout)
        try:
            if self._counts_only:
                last = self._counted(reader, deadline)
                reader.finish()
                return last
            self._end(reader, deadline)
            reader.finish()
        except GuestDiedError:
            reader.abandon()
        except BaseException:
            reader.abandon()
            raise
        return self._rest(reader, hits)

    def _rest(self, reader: Reader, hits: Hits) -> Batch:
        found = reader.take(last=True)
        self._tasks.add(found.names)
        return self._batch(hits.finish(found.pages), reader, found.activity)

    def _end(self, reader: Reader, deadline: Deadline) -> None:
        """Stop recording, wait for the last pages, and note what was lost."""
        reader.ask(
            *(f"write instances/{each}/tracing_on 0" for each in self._recording), "drain", deadline=deadline
        )
        dropped, *more = (self._dropped(reader, each, deadline) for each in self._recording)
        if sum(more):
            self._late.append(f"{sum(more)} switches of tasks or interrupts were dropped: they came too fast")
        if dropped:
            wait = "; the guest's kernel cannot be made to wait" if self._wanted.overflow == "block" else ""
            self._late.append(
                f"{dropped} hits were dropped: they came faster than vmdebug could read them{wait}"
            )
        if any(each.definition for each in self._events):
            (profile,) = reader.ask("read kprobe_profile", deadline=deadline)
            self._note_missed(files.profile(profile.decode()))

    def _dropped(self, reader: Reader, instance: str, deadline: Deadline) -> int:
        paths = [f"read instances/{instance}/per_cpu/cpu{cpu}/stats" for cpu in self._cpus]
        return sum(files.dropped(each.decode()) for each in reader.ask(*paths, deadline=deadline))

    def _note_missed(self, profile: Mapping[str, tuple[int, int]]) -> None:
        """Note the calls that a probe has missed."""
        for event in self._events:
            _, missed = profile.get(self._group.name(event), (0, 0))
            if missed and event.returns:
                self._late.append(f"{missed} hits have no return value: too many calls had not returned yet")
            elif missed:
                where = self._wanted.probes[event.probe].where
                self._late.append(f"{missed} calls of {where} are missing: they came from inside a kprobe")

    def _counted(self, reader: Reader, deadline: Deadline) -> Batch:
        """Return the numbers of hits that the kernel has counted."""
        (text,) = reader.ask("read kprobe_profile", deadline=deadline)
        profile = files.profile(text.decode())
        counts = [0] * len(self._wanted.probes)
        for event in self._events:
            counts[event.probe] += profile.get(self._group.name(event), (0, 0))[0]
        self._late = []
        self._note_missed(profile)
        limit = self._wanted.count
        return Batch(
            counts=tuple(counts),
            full=limit is not None and sum(counts) >= limit,
            ended=self._ended(reader),
            started=self._started,
            notes=(*self._notes, *self._late),
        )

    def _batch(self, found: Sequence[Hit], reader: Reader, more: Sequence[tuple[int, bytes]]) -> Batch:
        """Return hits and notes, and what the pages `more` tell of the CPUs."""
        wanted, hits, limit = self._wanted, self._hits, self._wanted.count
        given = tuple(found) if limit is None else tuple(found[: limit - self._given])
        self._given += len(given)
        notes = [*self._notes, *self._late]
        if hits is not None and hits.unevaluated:
            notes.append(
                f"{hits.unevaluated} calls are not recorded, because the condition {wanted.when} reads memory"
                " that could not be read there"
            )
        if hits is not None and hits.unpaired:
            notes.append(f"{hits.unpaired} hits have no return value: their return was not seen")
        counts = tuple(hits.counts) if wanted.count_only and hits is not None else ()
        seen = sum(counts) if wanted.count_only else self._given
        return Batch(
            hits=given,
            counts=counts,
            full=limit is not None and seen >= limit,
            ended=self._ended(reader),
            started=self._started,
            notes=tuple(notes),
            activity=self._activities.add(more) if self._activities is not None else (),
        )

    def _ended(self, reader: Reader) -> str:
        if reader.gone:
            return "the guest is gone"
        return "" if self._running() else "the guest is stopped"

    def _opened(self) -> tuple[Reader, Hits]:
        if self._reader is None or self._hits is None:
            raise StateError("the trace is not running")
        return self._reader, self._hits
