"""A trace: the sequence of its hits, and the context manager that collects them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, overload

from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.trace.activity import Activity
from vmdebug.trace.collector import Batch, Collector, Feature
from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Wanted
from vmdebug.trace.selecting import SelectingCollector

STREAM_SECONDS = 0.05
"""How often `Trace.stream` looks for hits."""


class Trace(Sequence[Hit]):
    """The hits of a trace; a context manager that runs the guest in the block, and restores its state.

    Args:
        collector: The collector.
        wanted: What to collect.
        reason: Why this collector was chosen, on one line; "" if the caller chose it.

    Raises:
        UsageError: the collector cannot collect a part of it; the message has the reason.
    """

    def __init__(self, collector: Collector, wanted: Wanted, *, reason: str = "") -> None:
        self.collector = collector.name
        self.reason = reason
        for feature, words in _wants(wanted).items():
            why_not = collector.cannot.get(feature)
            if why_not is not None:
                raise UsageError(
                    f"{collector.name} cannot collect {words} here: {why_not}",
                    hint=f"trace without {feature}",
                )
        selects = wanted.until or wanted.longer is not None
        self._collector: Collector = SelectingCollector(collector) if selects else collector
        self._wanted = wanted
        self._collecting = False
        self._hits: list[Hit] = []
        self._latest = Batch()
        self.activity: list[Activity] = []
        """What the scheduler and the interrupts did, with `sched` and `irqs`; `take` adds to it."""

    def __enter__(self) -> Self:
        self._add(self._collector.start(self._wanted))
        self._collecting = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._collecting = False
        self._add(self._collector.stop())

    def take(self) -> list[Hit]:
        """Return the hits since the last call, in the block; the guest keeps running."""
        return self._add(self._collector.take()) if self._collecting else []

    def stream(self, *, timeout: float = threading.TIMEOUT_MAX) -> Iterator[Hit]:
        """Yield hits in the block as they come, and keep none: they are not elements of the trace.

        It ends when the trace is full, the guest stops or ends, or the time is up. The hits after that are
        elements of the trace.

        Args:
            timeout: Seconds after which it ends.
        """
        deadline = Deadline.after(timeout)
        pause = threading.Event()
        while self._collecting:
            fresh = self.take()
            del self._hits[len(self._hits) - len(fresh) :]
            yield from fresh
            if self.full or self.ended or deadline.passed:
                return
            if not fresh:
                pause.wait(min(STREAM_SECONDS, deadline.remaining))

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be collected, and why, according to the last batch."""
        return self._latest.notes

    @property
    def counts(self) -> dict[str, int]:
        """The number of hits of each place, if the trace only counts, according to the last batch."""
        named = zip(self._wanted.probes, self._latest.counts, strict=False)
        return {probe.where: count for probe, count in named}

    @property
    def full(self) -> bool:
        """Whether the trace has as many hits as `count` asks for, according to the last batch."""
        return self._latest.full

    @property
    def ended(self) -> str:
        """Why no more hits can come, according to the last batch: "the guest is stopped"; or ""."""
        return self._latest.ended

    def __iter__(self) -> Iterator[Hit]:
        given = 0
        while given < len(self._hits) or self.take():
            yield self._hits[given]
            given += 1

    def __len__(self) -> int:
        self.take()
        return len(self._hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...

    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        self.take()
        return self._hits[index]

    def _add(self, batch: Batch) -> list[Hit]:
        self._hits += batch.hits
        self.activity += batch.activity
        self._latest = batch
        return list(batch.hits)


def _wants(wanted: Wanted) -> dict[Feature, str]:
    """Return the wanted features, with their descriptions."""
    features: dict[Feature, tuple[bool, str]] = {
        "args": (any(probe.args for probe in wanted.probes), "expressions (args)"),
        "when": (bool(wanted.when), "hits under a condition (when)"),
        "count": (wanted.count is not None, "a number of hits (count)"),
        "backtrace": (wanted.backtrace, "backtraces (backtrace)"),
        "ret": (wanted.ret, "return values (ret)"),
        "sched": (wanted.sched, "switches of tasks (sched)"),
        "irqs": (wanted.irqs, "interrupts (irqs)"),
    }
    return {feature: words for feature, (is_wanted, words) in features.items() if is_wanted}
