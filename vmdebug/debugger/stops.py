"""The stops of the guest: makes a `Stop` from GDB's record, and calls the callbacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vmdebug.debugger import gdb_errors, stop
from vmdebug.debugger.breakpoint import Breakpoint
from vmdebug.debugger.breakpoint_table import BreakpointTable, Entry
from vmdebug.debugger.connection import Connection
from vmdebug.debugger.following import Following
from vmdebug.debugger.identity import SETTLE_SECONDS, Identity
from vmdebug.debugger.inspection import Inspection
from vmdebug.debugger.stop import Stop, Thread
from vmdebug.errors import GdbError, StateError


class Stops:
    """Reads stops, and keeps the latest one.

    Args:
        connection: The connection to GDB.
        table: The breakpoints that were set.
        identity: Compares the symbols with the guest's kernel at a stop, if it is not done yet.
        inspection: Makes the frames.
        following: The step that a stop may end.
    """

    def __init__(
        self,
        connection: Connection,
        table: BreakpointTable,
        identity: Identity,
        inspection: Inspection,
        following: Following,
    ) -> None:
        self._connection = connection
        self._table = table
        self._identity = identity
        self._inspection = inspection
        self._following = following
        self._latest: Stop | None = None

    @property
    def latest(self) -> Stop | None:
        """The latest stop that was read."""
        return self._latest

    def take(self) -> Stop:
        """Return the stop that no call has taken yet.

        Raises:
            StateError: another thread's call has taken it.
            GdbError: GDB could not resume the guest.
            MismatchError: the kernel in guest memory is of another build.
        """
        try:
            payload = self._connection.run.take_stop()
        except GdbError as error:
            raise gdb_errors.breakpoint_error(error, "running the guest") from error
        if payload is None:
            raise StateError("the guest has stopped, and another thread's call has returned that stop")
        if self._identity.settle():
            # The record's frame is from before the symbols were moved to the kernel's address.
            payload = {**payload, **self._connection.fetch("-stack-info-frame")}
        self._latest = self._stop(self._following.ended(payload))
        return self._latest

    def arrived(self, payload: Mapping[str, Any]) -> Stop:
        """Return the stop where a move within a recording has ended."""
        self._latest = self._stop(payload)
        return self._latest

    def call_callbacks(self, found: Stop) -> Stop | None:
        """Call the callbacks of the breakpoints that were hit.

        Returns:
            The stop for the caller; None if all callbacks let the guest continue.
        """
        hit = self._all_hit(found)
        if not hit:
            return found
        wanted = None
        for each in hit:
            reason = each.reason or stop.reason(found.details)
            there = dataclasses.replace(found, breakpoint=each.breakpoint, reason=reason)
            if each.callback is None or each.callback(there) is True:
                wanted = wanted or there
        # If a callback has stepped, return the stop that ended its last step.
        return self._latest if wanted is not None and self._latest is not found else wanted

    def _all_hit(self, found: Stop) -> tuple[Entry, ...]:
        """Return all breakpoints that were hit at once; MI's record names only the first."""
        if found.breakpoint is None:
            return ()
        first = self._entry(found.breakpoint.number)
        if not self._table.has_callbacks:
            return (first,)
        numbers = str(self._connection.fetch("-vmd-hit", SETTLE_SECONDS)["numbers"]).split()
        return tuple(self._entry(int(number)) for number in numbers) or (first,)

    def _stop(self, payload: Mapping[str, Any]) -> Stop:
        number = stop.hit(payload)
        hit = None if number is None else self._entry(number)
        thread = Thread(int(payload.get("thread-id", 1)))
        return Stop(
            reason=(hit.reason if hit is not None else "") or stop.reason(payload),
            thread=thread,
            frame=self._inspection.frame_of(payload.get("frame", {}), thread),
            breakpoint=None if hit is None else hit.breakpoint,
            signal=str(payload.get("signal-name", "")),
            details=payload,
            _inspector=self._inspection,
        )

    def _entry(self, number: int) -> Entry:
        # A GDB command may have set it.
        return self._table.get(number) or Entry(Breakpoint(number, ""))
