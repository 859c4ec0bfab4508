"""Writes hits in Perfetto's native format, which ui.perfetto.dev and trace_processor read.

Tasks are threads. Calls whose return was recorded are slices, other hits are instants, and numbers among the
arguments are counters as well. See https://perfetto.dev/docs/reference/synthetic-track-event.

What the scheduler and the interrupts do is written as events of ftrace: Perfetto shows them as a track for
each CPU, states of the tasks, and tracks of interrupts; see protos/perfetto/trace/ftrace there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vmdebug import extras
from vmdebug.trace.activity import Activity
from vmdebug.trace.hit import Argument, Hit

ADDRESSES = 1 << 47
"""Numbers from here on are no counters: most are kernel addresses."""

_PROCESS = 1
_SEQUENCE = 1
_FIRST_TRACK = 16


class Perfetto:
    """Writes the packets of a trace; the bytes of all calls together are a file.

    Args:
        release: The release of the guest's kernel, by which Perfetto reads states of tasks; "" if unknown.

    Raises:
        HostError: the package `perfetto` is not installed.
    """

    def __init__(self, release: str = "") -> None:
        self._pb: Any = extras.PERFETTO.need("the format perfetto", instead="take --format chrome")
        self._tracks: dict[tuple[str, object], int] = {}
        self._names: dict[int, str] = {}
        self._begun = False
        self._release = release

    def packets(self, hit: Hit) -> bytes:
        """Return the packets of a hit, and of tracks that are new."""
        trace = self._trace()
        at = round(hit.time * 1e9)
        track = self._task(trace, hit, at)
        kinds = self._pb.TrackEvent
        begin = self._event(trace, at, track, kinds.TYPE_SLICE_BEGIN if hit.duration else kinds.TYPE_INSTANT)
        begin.name = hit.symbol
        for name, value in _annotations(hit):
            self._annotate(begin, name, value)
        if hit.duration:
            self._event(trace, at + round(hit.duration * 1e9), track, kinds.TYPE_SLICE_END)
        for name, value in hit.args.items():
            if isinstance(value, int | float) and abs(value) < ADDRESSES:
                counter = self._counter(trace, f"{hit.symbol} {name}", at)
                event = self._event(trace, at, counter, kinds.TYPE_COUNTER)
                event.double_counter_value = float(value)
        return bytes(trace.SerializeToString())

    def activity_packets(self, done: Iterable[Activity]) -> bytes:
        """Return the packets of what the scheduler and the interrupts did."""
        trace = self._trace()
        bundles: dict[int, Any] = {}
        for each in done:
            if each.cpu not in bundles:
                bundles[each.cpu] = trace.packet.add().ftrace_events
                bundles[each.cpu].cpu = each.cpu
            event = bundles[each.cpu].event.add()
            event.timestamp = round(each.time * 1e9)
            event.pid = each.pid
            fields = getattr(event, each.event)
            fields.SetInParent()
            for name, value in each.fields.items():
                setattr(fields, name, value)
        return bytes(trace.SerializeToString())

    def _trace(self) -> Any:
        """Return an empty trace; the first one describes the guest."""
        trace = self._pb.Trace()
        if not self._begun:
            self._begun = True
            packet = self._packet(trace, 0)
            packet.track_descriptor.uuid = _PROCESS
            packet.track_descriptor.process.pid = _PROCESS
            packet.track_descriptor.process.process_name = "the guest"
            packet.sequence_flags = self._pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
            if self._release:
                name = trace.packet.add().system_info.utsname
                name.sysname, name.release = "Linux", self._release
        return trace

    def _packet(self, trace: Any, at: int) -> Any:
        packet = trace.packet.add()
        packet.timestamp = at
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet

    def _event(self, trace: Any, at: int, track: int, kind: int) -> Any:
        event = self._packet(trace, at).track_event
        event.type = kind
        event.track_uuid = track
        return event

    def _track(self, kind: str, key: object) -> tuple[int, bool]:
        """Return the number of a track, and whether it is new."""
        new = (kind, key) not in self._tracks
        return self._tracks.setdefault((kind, key), _FIRST_TRACK + len(self._tracks)), new

    def _task(self, trace: Any, hit: Hit, at: int) -> int:
        pid, comm = (hit.task.pid, hit.task.comm) if hit.task is not None else (-1, "unknown task")
        # Each CPU has an idle task of its own, whose pid is 0.
        track, new = self._track("task", (pid, hit.cpu if pid <= 0 else 0))
        if new or self._names.get(track) != comm:
            self._names[track] = comm
            descriptor = self._packet(trace, at).track_descriptor
            descriptor.uuid = track
            descriptor.parent_uuid = _PROCESS
            if pid > 0:
                descriptor.thread.pid = _PROCESS
                descriptor.thread.tid = pid
                descriptor.thread.thread_name = comm
            else:
                descriptor.name = comm
        return track

    def _counter(self, trace: Any, name: str, at: int) -> int:
        track, new = self._track("counter", name)
        if new:
            descriptor = self._packet(trace, at).track_descriptor
            descriptor.uuid = track
            descriptor.parent_uuid = _PROCESS
            descriptor.name = name
            descriptor.counter.SetInParent()
        return track

    def _annotate(self, event: Any, name: str, value: Argument) -> None:
        note = event.debug_annotations.add()
        note.name = name
        if isinstance(value, str):
            note.string_value = value
        elif isinstance(value, float):
            note.double_value = value
        elif isinstance(value, int) and value >= 1 << 63:
            note.pointer_value = value
        elif isinstance(value, int):
            note.int_value = value


def _annotations(hit: Hit) -> Iterator[tuple[str, Argument]]:
    yield from hit.args.items()
    yield "cpu", hit.cpu
    if hit.guest_time is not None:
        yield "guest time", hit.guest_time
    if hit.ret is not None:
        yield "returned", hit.ret
    if hit.backtrace:
        yield "backtrace", "\n".join(call.function or hex(call.pc) for call in hit.backtrace)
