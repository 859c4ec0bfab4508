"""A trace that two collectors share."""

from __future__ import annotations

from typing import ClassVar

import pytest

from vmdebug.errors import StateError
from vmdebug.trace.collector import Batch, Feature
from vmdebug.trace.hit import Hit
from vmdebug.trace.merged import MergedCollector, Part
from vmdebug.trace.probe import Probe, Wanted
from vmdebug.trace.trace import Trace

LATER = 1e9


class Counted:
    """A collector that gives what a test says, and notes what it was asked for."""

    cannot: ClassVar[dict[Feature, str]] = {}

    def __init__(
        self, name: str, started: float, *batches: list[tuple[str, float]], fails: bool = False
    ) -> None:
        self.name = name
        self.did: list[str] = []
        self._started = started
        self._batches = list(batches)
        self._fails = fails
        self.wanted = Wanted(())

    def start(self, wanted: Wanted) -> Batch:
        if self._fails:
            raise StateError("it cannot start")
        self.wanted = wanted
        self.did.append("start")
        return Batch(started=self._started, notes=("a note",))

    def take(self) -> Batch:
        return self._batch()

    def stop(self) -> Batch:
        self.did.append("stop")
        return self._batch()

    def _batch(self) -> Batch:
        given = self._batches.pop(0) if self._batches else []
        hits = tuple(Hit(symbol, {}, at, None, 0, None) for symbol, at in given)
        return Batch(hits=hits, counts=(len(hits),), started=self._started, notes=("a note",))


def merged(*parts: tuple[Counted, int]) -> MergedCollector:
    return MergedCollector([Part(each, (index,)) for each, index in parts])


def test_hits_are_in_the_order_of_time_since_the_first_one_started() -> None:
    plugin = Counted("the plugin", 100.0, [("a", 1.0), ("a", 3.0)], [("a", 9.0)])
    gdb = Counted("GDB", 101.0, [("b", 1.0)], [("b", 9.0)])
    with Trace(merged((plugin, 1), (gdb, 0)), Wanted((Probe("b"), Probe("a")))) as hits:
        assert [(hit.symbol, hit.time) for hit in hits.take()] == [("a", 1.0), ("b", 2.0), ("a", 3.0)]
    assert hits.collector == "the plugin and GDB"
    assert [(hit.symbol, hit.time) for hit in hits[3:]] == [("a", 9.0), ("b", 10.0)]
    assert (plugin.wanted.probes, gdb.wanted.probes) == ((Probe("a"),), (Probe("b"),))
    assert hits.notes == ("a note",)


def test_a_hit_waits_until_the_other_collector_was_asked_after_it() -> None:
    plugin = Counted("the plugin", 0.0, [("a", LATER)], [])
    with Trace(merged((plugin, 0), (Counted("GDB", 0.0), 1)), Wanted((Probe("a"), Probe("b")))) as hits:
        assert hits.take() == []
    assert len(hits) == 1


def test_a_limit_is_that_of_both() -> None:
    first, second = Counted("one", 0.0, [("a", 1.0), ("a", 2.0)]), Counted("two", 0.0, [("b", 1.5)])
    with Trace(merged((first, 0), (second, 1)), Wanted((Probe("a"), Probe("b")), count=2)) as hits:
        assert [hit.symbol for hit in hits] == ["a", "b"]
        assert hits.full


def test_counts_are_those_of_the_probes() -> None:
    first, second = Counted("one", 0.0, [("a", 1.0), ("a", 2.0)]), Counted("two", 0.0, [("b", 1.5)])
    wanted = Wanted((Probe("b"), Probe("a")), count_only=True)
    with Trace(merged((first, 1), (second, 0)), wanted) as hits:
        hits.take()
        assert hits.counts == {"b": 1, "a": 2}


def test_a_collector_that_cannot_start_stops_those_before_it() -> None:
    first = Counted("one", 0.0)
    trace = Trace(merged((first, 0), (Counted("two", 0.0, fails=True), 1)), Wanted((Probe("a"), Probe("b"))))
    with pytest.raises(StateError, match="it cannot start"), trace:
        pass
    assert first.did == ["start", "stop"]
