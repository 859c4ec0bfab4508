"""Hits that a trace selects of what a collector gives, and iterating over a trace."""

from __future__ import annotations

from typing import ClassVar

import pytest

from vmdebug.errors import UsageError
from vmdebug.trace import probe
from vmdebug.trace.collector import Batch, Feature
from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Probe, Wanted
from vmdebug.trace.trace import Trace


class Given:
    """A collector that gives the hits of a test, one batch at a time."""

    name = "a collector"
    cannot: ClassVar[dict[Feature, str]] = {}

    def __init__(self, *batches: list[Hit]) -> None:
        self._batches = list(batches)
        self.wanted = Wanted(())

    def start(self, wanted: Wanted) -> Batch:
        self.wanted = wanted
        return Batch()

    def take(self) -> Batch:
        return Batch(hits=tuple(self._batches.pop(0)) if self._batches else ())

    def stop(self) -> Batch:
        return Batch(hits=tuple(each for batch in self._batches for each in batch))


def call(count: int, *, reached: bool | None = None, duration: float | None = None) -> Hit:
    args: dict[str, int | float | str | None] = {"count": count}
    if reached is not None:
        args["((count == 3) != 0)"] = int(reached)
    return Hit("f", args, float(count), None, 0, None, duration=duration)


WANTED = Wanted((Probe("f", ("count",)),))


def test_the_first_hit_at_which_the_condition_is_true_is_the_last_one() -> None:
    wanted = probe.wanted("f", args=["count"], until="count == 3")
    given = Given(
        [call(1, reached=False), call(3, reached=True), call(4, reached=False)], [call(5, reached=True)]
    )
    with Trace(given, wanted) as hits:
        assert [hit.args for hit in hits.take()] == [{"count": 1}, {"count": 3}]
        assert hits.full
    assert len(hits) == 2
    assert given.wanted.probes == (Probe("f", ("count", "((count == 3) != 0)")),)


def test_calls_that_took_longer() -> None:
    wanted = probe.wanted("f", longer=0.5, count=2)
    given = Given(
        [call(1, duration=0.4), call(2, duration=0.6), call(3)], [call(4, duration=1), call(5, duration=1)]
    )
    with Trace(given, wanted) as hits:
        hits.take()
        assert not hits.full
    assert [hit.args["count"] for hit in hits] == [2, 4]
    assert (given.wanted.ret, given.wanted.count) == (True, None)


def test_a_time_that_is_none() -> None:
    with pytest.raises(UsageError, match="longer=-1 is no number of seconds"):
        probe.wanted("f", longer=-1)


def test_a_stream_keeps_no_hits() -> None:
    with Trace(Given([call(1), call(2)], [], [call(3)], [call(4)]), WANTED) as hits:
        stream = hits.stream(timeout=60)
        assert [next(stream).args["count"] for _ in range(3)] == [1, 2, 3]
        assert [hit.args["count"] for hit in hits] == [4]


def test_a_stream_ends_when_the_time_is_up() -> None:
    with Trace(Given([call(1)]), WANTED) as hits:
        assert [hit.args["count"] for hit in hits.stream(timeout=0)] == [1]


def test_an_iteration_takes_what_comes_meanwhile() -> None:
    with Trace(Given([call(1)], [call(2)]), WANTED) as hits:
        assert [hit.args["count"] for hit in hits] == [1, 2]
