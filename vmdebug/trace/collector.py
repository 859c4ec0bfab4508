"""The protocol between a trace and what collects its hits.

A collector collects one trace. It runs the guest while it collects, and leaves it stopped or running as it
found it. GDB is one collector; a QEMU plugin or the guest's own tracing can be others: nothing here and in
`trace` knows which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from vmdebug.trace.hit import Hit
from vmdebug.trace.probe import Wanted

Feature = Literal["args", "when", "count", "backtrace", "ret"]
"""A part of `Wanted` that a collector may not be able to collect."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What a collector hands over at a time.

    Args:
        hits: The hits since the last batch, in their order.
        full: Whether the trace has as many hits as it wanted.
        ended: Why no more hits come for now: "the guest is stopped"; "" while they may.
        notes: What cannot be collected as wanted, and why, as far as it is known by now.
    """

    hits: tuple[Hit, ...] = ()
    full: bool = False
    ended: str = ""
    notes: tuple[str, ...] = ()


class Collector(Protocol):
    """Collects the hits of one trace; every method raises `VmdebugError`s only."""

    @property
    def name(self) -> str:
        """What collects, for messages: "GDB"."""

    @property
    def cannot(self) -> Mapping[Feature, str]:
        """What it cannot collect on this guest, each with the reason; known before `start`."""

    def start(self, wanted: Wanted) -> Batch:
        """Start to collect, and let the guest run.

        Args:
            wanted: What to collect; it asks for nothing that `cannot` has.

        Returns:
            The notes that are known by now; hits may follow at once.

        Raises:
            VmdebugError: a place, an expression or the condition can never be evaluated; nothing is left in
                the guest.
        """

    def take(self) -> Batch:
        """Return the hits since the last batch; the guest runs on."""

    def stop(self) -> Batch:
        """Stop collecting, leave the guest as `start` found it, and return the rest of the hits."""
