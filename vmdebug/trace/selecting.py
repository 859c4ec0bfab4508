"""Selects hits of a collector: those of long calls, and those until a condition holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from vmdebug.trace.collector import Batch, Collector, Feature
from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Probe, Wanted


class SelectingCollector:
    """Passes on the hits that `Wanted.until` and `Wanted.longer` select, of any collector.

    Args:
        collector: The collector.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._wanted = Wanted(())
        self._given = 0
        self._reached = False

    @property
    def name(self) -> str:
        """The name of the collector."""
        return self._collector.name

    @property
    def cannot(self) -> Mapping[Feature, str]:
        """The features that it cannot collect, with the reasons."""
        return self._collector.cannot

    def start(self, wanted: Wanted) -> Batch:
        """Start to collect; see `Collector.start`."""
        self._wanted = wanted
        return self._selected(self._collector.start(collected(wanted)))

    def take(self) -> Batch:
        """Return the hits since the last batch."""
        return self._selected(self._collector.take())

    def stop(self) -> Batch:
        """Stop collecting, and return the remaining hits."""
        return self._selected(self._collector.stop())

    def _selected(self, batch: Batch) -> Batch:
        hits = tuple(self._wanted_ones(batch.hits))
        limit, longer = self._wanted.count, self._wanted.longer
        full = batch.full if limit is None or longer is None else self._given >= limit
        return msgspec.structs.replace(batch, hits=hits, full=full or self._reached)

    def _wanted_ones(self, hits: Sequence[Hit]) -> Iterator[Hit]:
        until, longer, limit = self._wanted.until, self._wanted.longer, self._wanted.count
        for hit in hits:
            if self._reached or (limit is not None and self._given >= limit):
                return
            args = dict(hit.args)
            self._reached = bool(args.pop(_hidden(until), None)) if until else False
            if longer is None or (hit.duration is not None and hit.duration > longer):
                self._given += 1
                yield msgspec.structs.replace(hit, args=args) if until else hit


def collected(wanted: Wanted) -> Wanted:
    """Return what a collector collects for a trace: also what selects the hits."""
    probes = wanted.probes
    if wanted.until:
        hidden = _hidden(wanted.until)
        probes = tuple(Probe(each.where, (*each.args, hidden)) for each in probes)
    count = wanted.count if wanted.longer is None else None
    return msgspec.structs.replace(wanted, probes=probes, count=count)


def _hidden(until: str) -> str:
    """Return the condition as an expression that no user writes, so that its value has a key of its own."""
    return f"(({until}) != 0)"
