"""Boots in Perfetto's native format: a process for each boot, with a track for each kind of step.

See https://perfetto.dev/docs/reference/synthetic-track-event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmdebug import extras
from vmdebug.timeline.boot import Boot, Step

_SEQUENCE = 1


def render(boots: Sequence[Boot]) -> bytes:
    """Return a trace of one boot or more; all begin at 0.

    Raises:
        HostError: the package `perfetto` is not installed.
    """
    pb: Any = extras.PERFETTO.need("a file for Perfetto")
    trace = pb.Trace()
    for number, boot in enumerate(boots, 1):
        _boot(trace, pb, boot, number)
    return bytes(trace.SerializeToString())


def _boot(trace: Any, pb: Any, boot: Boot, number: int) -> None:
    base = number << 16
    described = trace.packet.add().track_descriptor
    described.uuid = base
    described.process.pid = number
    described.process.process_name = f"boot of {boot.name}, Linux {boot.kernel or '?'}"
    ends: list[tuple[str, float]] = []
    for step in boot.steps:
        # Slices of a track may not overlap, unless they nest. Steps that overlap get tracks of their own.
        free = next(
            (n for n, (kind, end) in enumerate(ends) if kind == step.kind and end <= step.start), None
        )
        if free is None:
            free = len(ends)
            ends.append((step.kind, 0.0))
            track = trace.packet.add().track_descriptor
            track.uuid, track.parent_uuid, track.name = base + free + 1, base, f"{step.kind}s"
        ends[free] = (step.kind, step.end)
        _slice(trace, pb, step, base + free + 1)


def _slice(trace: Any, pb: Any, step: Step, track: int) -> None:
    kinds = pb.TrackEvent
    for at, kind in ((step.start, kinds.TYPE_SLICE_BEGIN), (step.end, kinds.TYPE_SLICE_END)):
        packet = trace.packet.add()
        packet.timestamp = round(at * 1e9)
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.track_event.type, packet.track_event.track_uuid = kind, track
        if kind == kinds.TYPE_SLICE_BEGIN:
            packet.track_event.name = step.name
            for name, value in (("module", step.owner), ("waited for", step.waited_for)):
                if value:
                    note = packet.track_event.debug_annotations.add()
                    note.name, note.string_value = name, value
