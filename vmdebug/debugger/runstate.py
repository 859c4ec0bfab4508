"""The run state: whether the guest runs, according to GDB's last report. Only this module stores it.

GDB's exec and notify records change it. A call that is not allowed in the present state raises at once, and
names the state that it needs.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vmdebug.debugger import mi
from vmdebug.errors import GdbError, GuestDiedError, StateError


class State(enum.StrEnum):
    """The state of GDB and the guest."""

    UNCONNECTED = "not connected"
    STOPPED = "stopped"
    RUNNING = "running"
    DETACHED = "detached"
    GONE = "gone"
    """The guest has exited, or QEMU has ended."""
    ENDED = "ended"
    """GDB has ended."""


_HINTS = {
    (State.STOPPED, State.RUNNING): "interrupt() stops it, wait_stop() waits until it stops",
    (State.RUNNING, State.STOPPED): "cont() sets it running, cont(wait=False) without waiting",
}


class RunState:
    """Follows the records that the transport reads; see `transport.Listener`.

    It keeps a stop until a call takes it, so that a stop before that call is not lost.
    """

    def __init__(self) -> None:
        self.state = State.UNCONNECTED
        self.runs = 0
        """How many times the guest was resumed or replaced; frames of earlier runs are invalid."""
        self._on_stop: Callable[[], object] | None = None
        self._detaching = False
        self._stop: Mapping[str, Any] | None = None
        self._failure = ""

    def notice(self, record: mi.Record) -> None:
        """Handle an exec or notify record, or a result of class "running"."""
        if record.name == "running":
            if self.state is not State.RUNNING:
                self.state = State.RUNNING
                self.runs += 1
                self._stop = None
        elif record.name == "stopped":
            self._stopped(record)
        elif record.name == "thread-group-exited" and self.state in (State.STOPPED, State.RUNNING):
            self.state = State.DETACHED if self._detaching else State.GONE

    def failed(self, words: str) -> None:
        """Record that GDB could not resume the guest, although it reported `running`."""
        if self.state is State.RUNNING:  # otherwise the guest has gone, which was the reason
            self.state = State.STOPPED
            self._failure = words

    def ended(self) -> None:
        """Record that GDB has ended."""
        self.state = State.ENDED

    def adopt(self, state: State) -> None:
        """Set the state of a GDB that was already connected, unless GDB has reported a newer one."""
        if self.state is State.UNCONNECTED:
            self.state = state

    def replaced(self) -> None:
        """Record that the stopped guest has changed, so that its frames are invalid."""
        self.runs += 1

    def at_stop(self, call: Callable[[], object]) -> None:
        """Call `call` at each stop and at the guest's end, in the reading thread; it must be quick."""
        self._on_stop = call

    @property
    def unseen(self) -> bool:
        """Whether there is a stop, or a failure to resume, that no call has taken."""
        return self._stop is not None or bool(self._failure)

    @property
    def waiting(self) -> Mapping[str, Any]:
        """The stop that no call has taken, which is kept; empty if there is none."""
        return self._stop or {}

    @property
    def interrupted(self) -> bool:
        """Whether the stop that no call has taken is from an interrupt."""
        return self._stop is not None and self._stop.get("signal-name") == "SIGINT"

    def take_stop(self) -> Mapping[str, Any] | None:
        """Take the stop that no call has taken, as the values of MI's `*stopped`; None if there is none.

        Raises:
            GdbError: GDB could not resume the guest.
        """
        stop, self._stop = self._stop, None
        failure, self._failure = self._failure, ""
        if failure:
            raise GdbError("GDB could not resume the guest", words=failure.strip())
        return stop

    @contextlib.contextmanager
    def detaching(self) -> Iterator[None]:
        """Interpret the end of the inferior in the block as a detach, not as the guest's end."""
        self._detaching = True
        try:
            yield
        finally:
            self._detaching = False

    def need(self, call: str, *allowed: State) -> None:
        """Raise unless the state is one of `allowed`.

        Raises:
            StateError: it is another state; the message names both.
            GuestDiedError: the guest or QEMU has ended.
            GdbError: GDB has ended.
        """
        if self.state in allowed:
            return
        if self.state is State.GONE:
            raise self.died(call)
        if self.state is State.ENDED:
            raise GdbError(f"{call}: GDB has ended")
        raise StateError(
            f"{call} needs a guest that is {' or '.join(allowed)}; it is {self.state}",
            hint=_HINTS.get((allowed[0], self.state), "connect() attaches GDB to it"),
        )

    def need_run(self, run: int, what: str) -> None:
        """Raise unless the guest has been stopped since its `run`.

        Raises:
            StateError: it runs, or has run since.
        """
        self.need(what, State.STOPPED)
        if run != self.runs:
            raise StateError(
                f"{what}: the guest has run since that frame was taken",
                hint="take the frame from the newest stop",
            )

    def died(self, call: str) -> GuestDiedError:
        """Return the error for a guest that has ended."""
        return GuestDiedError(
            f"{call}: the guest has exited, or QEMU has ended",
            hint="the console log has the guest's last messages, qemu.log those of QEMU",
        )

    def _stopped(self, record: mi.Record) -> None:
        stop: Mapping[str, Any] = {}
        with contextlib.suppress(GdbError):  # the guest has stopped, even if the record cannot be read
            stop = record.payload()
        if str(stop.get("reason", "")).startswith("exited"):
            # When the guest powers off, QEMU either reports it, or only closes the connection.
            self.state = State.GONE
        else:
            self.state = State.STOPPED
            self._stop = stop
        if self._on_stop is not None:
            self._on_stop()
