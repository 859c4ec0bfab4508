"""Makes hits of the pages of the ring buffers: in order of time, with returns and backtraces."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Iterable, Sequence

import msgspec

from vmdebug.trace.guest import pages
from vmdebug.trace.guest.events import Event
from vmdebug.trace.guest.fetches import FIRST_FIELD, PID, Computation, Record, UnreadableError
from vmdebug.trace.guest.formats import Format
from vmdebug.trace.guest.records import Read, reader
from vmdebug.trace.guest.tasks import Tasks
from vmdebug.trace.hit import Argument, Call, Hit
from vmdebug.trace.probe import Wanted

_STACK_BYTES = 1 << 16
"""The largest kernel stack."""

_LATE_STACK = 100_000_000
"""How long the stack of a hit may come after it, in ns: it may be in the next page."""

_PENDING = 1 << 12
"""Calls of a task that wait for their return."""

_BOTTOM = (0, (1 << 64) - 1)
"""What ends a stack: it may be shorter than its record."""

Symbolize = Callable[[Sequence[int], int], tuple[Call, ...]]
"""Returns the frames of a backtrace's addresses, and that of the probe."""


class _Seen(msgspec.Struct):
    """A record that needs more than itself to become a hit.

    Args:
        time: Its time, in ns.
        event: Its event.
        record: Its fields.
        stack: Its backtrace; None if it has not come.
    """

    time: int
    event: Event
    record: Record
    stack: tuple[int, ...] | None = None


class _Call(msgspec.Struct):
    """A call that has not returned."""

    seen: _Seen
    stack_pointer: int


class Hits:
    """Makes the hits of one trace.

    Args:
        wanted: The trace.
        events: Its events, with their formats.
        tasks: The guest's tasks.
        stack: The format of the records of stacks, if backtraces are wanted.
        began: When the trace began, in ns of the guest's monotonic clock.
        symbolize: Returns the frames of addresses.
        filtered: Whether tracefs checks the conditions that it can express.
    """

    def __init__(
        self,
        wanted: Wanted,
        events: Sequence[tuple[Event, Format]],
        *,
        tasks: Tasks,
        stack: Format | None = None,
        began: int,
        symbolize: Symbolize,
        filtered: bool,
    ) -> None:
        self.counts = [0] * len(wanted.probes)
        """The number of hits of each probe."""
        self.unevaluated = 0
        """The number of records for which the condition cannot be evaluated."""
        self.unpaired = 0
        """The number of calls whose return was not seen."""
        self._wanted = wanted
        self._began = began
        self._symbolize = symbolize
        self._cpu = 0
        self._hits: list[Hit] = []
        self._seen: list[_Seen] = []
        self._unstacked: dict[int, list[_Seen]] = {}
        self._calls: dict[tuple[int, int], list[_Call]] = {}
        self._tasks = tasks
        joined = wanted.backtrace or any(event.returns for event, _ in events)
        self._decoders: dict[int, pages.Decode] = {}
        for event, form in events:
            read = reader(form, event.fields)
            check = None if filtered and event.exact else event.condition
            make = self._remember(event, read, check) if joined else self._plain(event, read, check)
            self._decoders[form.id] = make
        if stack is not None:
            self._decoders[stack.id] = self._stack(stack)

    def add(self, given: Iterable[tuple[int, bytes]], complete: int) -> list[Hit]:
        """Return the hits that pages complete, in order of time.

        Args:
            given: The CPU and the bytes of each page.
            complete: The time up to which all pages have come, in ns; later hits wait for the next call.
        """
        for self._cpu, page in given:
            pages.decode(page, self._decoders)
        self._join(complete)
        self._hits.sort(key=lambda hit: hit.time)
        limit, ready = (complete - self._began) / 1e9, len(self._hits)
        while ready and self._hits[ready - 1].time > limit:
            ready -= 1
        found = self._hits[:ready]
        del self._hits[:ready]
        return found

    def finish(self, given: Iterable[tuple[int, bytes]]) -> list[Hit]:
        """Return the hits of the last pages, and the calls that have not returned."""
        forever = 1 << 64
        found = self.add(given, forever)
        self._seen_all()
        late = [self._hit(call.seen, None) for calls in self._calls.values() for call in calls]
        self._calls = {}
        return sorted((*found, *self._hits, *late), key=lambda hit: hit.time)

    # Records that are hits by themselves

    def _plain(self, event: Event, read: Read, check: Callable[[Record], int] | None) -> pages.Decode:
        """Return the decoder of an event whose records are hits."""
        name, began, append = self._wanted.probes[event.probe].where, self._began, self._hits.append
        texts = [text for text, _ in event.arguments]
        computed = [(text, value) for text, value in event.arguments if not isinstance(value, int)]
        places = _getter(event)
        named, tasks = self._tasks.single, self._tasks
        counts, probe, only_counts = self.counts, event.probe, self._wanted.count_only

        def decode(page: bytes, at: int, time: int) -> None:
            cpu = self._cpu
            record = read(cpu, page, at)
            if check is not None and not self._holds(check, record):
                return
            counts[probe] += 1
            if only_counts:
                return
            args: dict[str, Argument] = dict(zip(texts, places(record), strict=True))
            for text, value in computed:
                args[text] = _value(value, record)
            pid = record[PID]
            task = named.get(pid) or tasks.at(pid, cpu, time)
            append(Hit(name, args, (time - began) / 1e9, time / 1e9, cpu, task))

        return decode

    def _holds(self, check: Callable[[Record], int], record: Record) -> bool:
        try:
            return bool(check(record))
        except UnreadableError:
            self.unevaluated += 1
            return False

    # Records that others complete

    def _remember(self, event: Event, read: Read, check: Callable[[Record], int] | None) -> pages.Decode:
        """Return the decoder of an event whose records are entries, returns, or have a stack."""

        def decode(page: bytes, at: int, time: int) -> None:
            record = read(self._cpu, page, at)
            if check is not None and not event.returns and not self._holds(check, record):
                # Its return finds no call; its stack is dropped.
                self._unstacked.setdefault(self._cpu, []).append(_Seen(time, event, record))
                return
            seen = _Seen(time, event, record)
            self._seen.append(seen)
            if self._wanted.backtrace:
                self._unstacked.setdefault(self._cpu, []).append(seen)

        return decode

    def _stack(self, form: Format) -> pages.Decode:
        """Return the decoder of a stack: it belongs to the last record of its CPU that has none yet."""
        size, caller = form.places["size"], form.places["caller"]

        def decode(page: bytes, at: int, time: int) -> None:  # noqa: ARG001 - see pages.Decode
            (count,) = struct.unpack_from("<i", page, at + size.offset)
            begin = at + caller.offset
            count = min(count, (len(page) - begin) // 8)
            waiting = self._unstacked.get(self._cpu)
            if waiting:
                found = struct.unpack_from(f"<{count}Q", page, begin)
                waiting.pop().stack = tuple(each for each in found if each not in _BOTTOM)

        return decode

    def _join(self, complete: int) -> None:
        """Make hits of the records up to a time; those whose stack is late stay."""
        self._seen.sort(key=lambda seen: seen.time)
        ready, wait = 0, complete - _LATE_STACK
        for seen in self._seen:
            if seen.time > complete or (self._wanted.backtrace and seen.stack is None and seen.time > wait):
                break
            ready += 1
        now, self._seen = self._seen[:ready], self._seen[ready:]
        for seen in now:
            self._resolve(seen)
        for cpu, waiting in self._unstacked.items():
            self._unstacked[cpu] = [each for each in waiting if each.stack is None and each.time > wait]

    def _seen_all(self) -> None:
        for seen in self._seen:
            self._resolve(seen)
        self._seen = []

    def _resolve(self, seen: _Seen) -> None:
        event, record = seen.event, seen.record
        if event.returns:
            self._returned(seen)
            return
        self.counts[event.probe] += 1
        if event.stack is None:
            self._hits.append(self._hit(seen, None))
            return
        calls = self._calls.setdefault(self._key(seen), [])
        calls.append(_Call(seen, record[event.stack]))
        if len(calls) > _PENDING:
            self.unpaired += 1
            self._hits.append(self._hit(calls.pop(0).seen, None))

    def _key(self, seen: _Seen) -> tuple[int, int]:
        """Return what calls and their returns have in common: the task, and for idle tasks, the CPU."""
        cpu, pid = seen.record[:2]
        return pid, cpu if pid == 0 else -1

    def _returned(self, seen: _Seen) -> None:
        """Find the call that has returned: the outermost one of its function that is deeper on the stack.

        Those that are deeper still have returned, too, but tracefs has not seen it: its records of pending
        calls were in use, or a probe was hit in a probe. Of calls at the same place, because one jumped to
        the other instead of calling it, the last one returns first.
        """
        at, calls = seen.record[seen.event.stack or 0], self._calls.get(self._key(seen), [])
        depth, found = len(calls), -1
        while depth and 0 <= at - calls[depth - 1].stack_pointer < _STACK_BYTES:
            depth -= 1
            call = calls[depth]
            same = call.seen.event.probe == seen.event.probe
            if same and (found < 0 or call.stack_pointer > calls[found].stack_pointer):
                found = depth
        if found < 0:
            return
        match, inside = calls[found], calls[found + 1 :]
        lost = [each for each in inside if each.stack_pointer < match.stack_pointer]
        calls[found:] = [each for each in inside if each.stack_pointer >= match.stack_pointer]
        self.unpaired += len(lost)
        self._hits += [self._hit(each.seen, None) for each in lost]
        self._hits.append(self._hit(match.seen, seen))

    def _hit(self, seen: _Seen, returned: _Seen | None) -> Hit:
        event = seen.event
        return Hit(
            symbol=self._wanted.probes[event.probe].where,
            args=_values(event, seen.record),
            time=(seen.time - self._began) / 1e9,
            guest_time=seen.time / 1e9,
            cpu=seen.record[0],
            task=self._tasks.at(seen.record[PID], seen.record[0], seen.time),
            backtrace=self._symbolize(seen.stack or (), event.address) if self._wanted.backtrace else (),
            ret=returned.record[FIRST_FIELD] if returned is not None else None,
            duration=(returned.time - seen.time) / 1e9 if returned is not None else None,
        )


def _getter(event: Event) -> Callable[[Record], tuple[Argument, ...]]:
    """Return the function that takes the values of the expressions from a record.

    A computed one has any value.
    """
    places = [each if isinstance(each, int) else 0 for _, each in event.arguments]
    if len(places) > 1:
        return operator.itemgetter(*places)
    return (lambda record: (record[places[0]],)) if places else (lambda _record: ())


def _values(event: Event, record: Record) -> dict[str, Argument]:
    return {
        text: record[value] if isinstance(value, int) else _value(value, record)
        for text, value in event.arguments
    }


def _value(value: Computation, record: Record) -> Argument:
    try:
        return value(record)
    except UnreadableError:
        return None
