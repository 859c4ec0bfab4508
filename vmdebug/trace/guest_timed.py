"""Hits with the guest's time, for a replay: the host's is another one each time."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from vmdebug.trace.collector import Batch, Collector, Feature
from vmdebug.trace.probe import Wanted


class GuestTimed:
    """A collector whose hits have the time since the guest's boot, and no durations.

    Args:
        inner: Collects them.
    """

    def __init__(self, inner: Collector) -> None:
        self._inner = inner
        self.name = inner.name
        self.cannot: Mapping[Feature, str] = inner.cannot

    def start(self, wanted: Wanted) -> Batch:
        """See `Collector.start`."""
        return _timed(self._inner.start(wanted))

    def take(self) -> Batch:
        """See `Collector.take`."""
        return _timed(self._inner.take())

    def stop(self) -> Batch:
        """See `Collector.stop`."""
        return _timed(self._inner.stop())


def _timed(batch: Batch) -> Batch:
    hits = tuple(
        msgspec.structs.replace(hit, time=hit.guest_time or 0.0, duration=None) for hit in batch.hits
    )
    return msgspec.structs.replace(batch, hits=hits, started=0.0)
