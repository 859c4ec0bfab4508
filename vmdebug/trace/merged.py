"""Collects one trace with several collectors, each for some of its probes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

import msgspec

from vmdebug.errors import VmdebugError
from vmdebug.trace.collector import Batch, Collector, Feature
from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Wanted


class Part(msgspec.Struct, frozen=True):
    """A collector, and what it collects.

    Args:
        collector: The collector.
        probes: The indexes of its probes in the whole trace.
    """

    collector: Collector
    probes: tuple[int, ...]


class MergedCollector:
    """Collects a trace with several collectors, and merges their hits in the order of time.

    Args:
        parts: The collectors, in the order in which to start them.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        self._wanted = Wanted(())
        self._latest: dict[int, Batch] = {}
        self._waiting: list[tuple[float, Hit]] = []
        self._given = 0

    @property
    def name(self) -> str:
        """The names of the collectors."""
        return " and ".join(part.collector.name for part in self._parts)

    @property
    def cannot(self) -> Mapping[Feature, str]:
        """The features that one of them cannot collect, with the reasons."""
        return {feature: why for part in self._parts for feature, why in part.collector.cannot.items()}

    def start(self, wanted: Wanted) -> Batch:
        """Start all collectors; if one fails, stop those before it; see `Collector.start`.

        Raises:
            VmdebugError: one of them cannot start.
        """
        self._wanted = wanted
        with contextlib.ExitStack() as started:
            for number, part in enumerate(self._parts):
                probes = tuple(wanted.probes[each] for each in part.probes)
                batch = part.collector.start(msgspec.structs.replace(wanted, probes=probes))
                started.callback(_stop_quietly, part.collector)
                self._keep(number, batch)
            started.pop_all()
        return self._merged(self._all())

    def take(self) -> Batch:
        """Return the hits since the last batch, up to the moment of this call."""
        now = time.monotonic()
        for number, part in enumerate(self._parts):
            self._keep(number, part.collector.take())
        # A collector that was asked first may have hits that are older than the last ones of another.
        ripe = [each for each in self._waiting if each[0] <= now]
        self._waiting = [each for each in self._waiting if each[0] > now]
        return self._merged(ripe)

    def stop(self) -> Batch:
        """Stop all collectors, the last one first, and return the remaining hits.

        Raises:
            VmdebugError: a collector cannot stop; the others are stopped all the same.
        """
        error: VmdebugError | None = None
        for number, part in reversed(list(enumerate(self._parts))):
            try:
                self._keep(number, part.collector.stop())
            except VmdebugError as found:
                error = error or found
        if error is not None:
            raise error
        return self._merged(self._all())

    def _all(self) -> list[tuple[float, Hit]]:
        found, self._waiting = self._waiting, []
        return found

    def _keep(self, number: int, batch: Batch) -> None:
        """Keep the hits of a collector, with the times since the start of the first one."""
        self._latest[number] = batch
        first = self._latest[0].started
        for hit in batch.hits:
            at = batch.started + hit.time
            self._waiting.append((at, msgspec.structs.replace(hit, time=max(at - first, 0.0))))

    def _merged(self, timed: list[tuple[float, Hit]]) -> Batch:
        hits = [hit for _, hit in sorted(timed, key=lambda each: each[0])]
        limit = self._wanted.count
        if limit is not None:
            hits = hits[: limit - self._given]
        self._given += len(hits)
        batches = self._latest.values()
        return Batch(
            hits=tuple(hits),
            counts=self._counts(),
            full=limit is not None and (self._given >= limit or any(each.full for each in batches)),
            ended=next((each.ended for each in batches if each.ended), ""),
            notes=tuple(dict.fromkeys(note for each in batches for note in each.notes)),
            started=self._latest[0].started,
        )

    def _counts(self) -> tuple[int, ...]:
        if not self._wanted.count_only:
            return ()
        counts = [0] * len(self._wanted.probes)
        for number, part in enumerate(self._parts):
            for index, count in zip(part.probes, self._latest[number].counts, strict=False):
                counts[index] = count
        return tuple(counts)


def _stop_quietly(collector: Collector) -> None:
    with contextlib.suppress(VmdebugError):
        collector.stop()
