"""The protocol between a trace and the collector of its hits.

A collector collects the hits of one trace. It lets the guest run meanwhile, and afterwards leaves it running
or stopped, as it was before. GDB is one collector, the plugin in QEMU another. This module and `trace` do not
depend on either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from vmdebug.trace.activity import Activity
from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Wanted

Feature = Literal["args", "when", "count", "backtrace", "ret", "sched", "irqs"]
"""A part of `Wanted` that a collector may not be able to collect."""

NO_ACTIVITY: Mapping[Feature, str] = dict.fromkeys(
    ("sched", "irqs"), 'only the guest\'s kernel can record them; it collects with by="guest", or by itself'
)
"""What the collectors outside the guest cannot collect."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The hits and notes that a collector returns from one call.

    Args:
        hits: The hits since the last batch, in order.
        counts: The number of hits of each probe until now, if the trace only counts.
        full: Whether the trace has as many hits as `Wanted.count` asks for.
        ended: Why no more hits can come at present: "the guest is stopped"; "" if more can come.
        notes: What cannot be collected, and why.
        started: The host's monotonic clock in seconds when the trace began, from which `Hit.time` counts.
        activity: What the scheduler and the interrupts have done since the last batch, in order.
    """

    hits: tuple[Hit, ...] = ()
    counts: tuple[int, ...] = ()
    full: bool = False
    ended: str = ""
    notes: tuple[str, ...] = ()
    started: float = 0.0
    activity: tuple[Activity, ...] = ()


class Collector(Protocol):
    """Collects the hits of one trace; every method raises `VmdebugError`s only."""

    @property
    def name(self) -> str:
        """The name of the collector, for messages: "GDB"."""

    @property
    def cannot(self) -> Mapping[Feature, str]:
        """The features that it cannot collect on this guest, with the reasons."""

    def start(self, wanted: Wanted) -> Batch:
        """Start to collect, and let the guest run.

        Args:
            wanted: What to collect, without the features in `cannot`.

        Returns:
            The first notes.

        Raises:
            VmdebugError: a place does not exist, or an expression or the condition can never be evaluated.
                The guest is as before.
        """

    def take(self) -> Batch:
        """Return the hits since the last batch; the guest keeps running."""

    def stop(self) -> Batch:
        """Stop collecting, leave the guest running or stopped as before, and return the remaining hits."""
