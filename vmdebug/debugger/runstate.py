"""What the guest does, as GDB last said: the one place that knows.

GDB's exec and notify records drive it; a call that the present state does not
allow raises at once and names the state it needs.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vmdebug.debugger import mi
from vmdebug.errors import GdbError, GuestDiedError, StateError


class State(enum.StrEnum):
    """Where GDB and the guest stand."""

    UNCONNECTED = "not connected"
    STOPPED = "stopped"
    RUNNING = "running"
    DETACHED = "detached"
    GONE = "gone"
    """The guest exited, or QEMU ended."""
    ENDED = "ended"
    """GDB itself has ended."""


_HINTS = {
    (State.STOPPED, State.RUNNING): "interrupt() stops it, wait_stop() waits until it stops",
    (State.RUNNING, State.STOPPED): "cont() sets it running, cont(wait=False) without waiting",
}


class RunState:
    """Takes what the transport reads; see `transport.Listener`.

    A stop is kept until somebody takes it, so none is lost that comes before anybody waits.
    """

    def __init__(self) -> None:
        self.state = State.UNCONNECTED
        self.runs = 0
        """How often the guest was set running; a frame of an earlier run is no longer there."""
        self.on_stop: Callable[[], object] | None = None
        """Called at each stop, and at the guest's end, by whichever thread reads; it must only take note."""
        self._letting_go = False
        self._stop: Mapping[str, Any] | None = None
        self._failure = ""

    def notice(self, record: mi.Record) -> None:
        """Follow an exec or notify record, or a result of class "running"."""
        if record.name == "running":
            if self.state is not State.RUNNING:
                self.state = State.RUNNING
                self.runs += 1
                self._stop = None
        elif record.name == "stopped":
            self._stopped(record)
        elif record.name == "thread-group-exited" and self.state in (State.STOPPED, State.RUNNING):
            self.state = State.DETACHED if self._letting_go else State.GONE

    def failed(self, words: str) -> None:
        """Take it that the guest does not run after all."""
        if self.state is State.RUNNING:  # else it is gone, which was the reason
            self.state = State.STOPPED
            self._failure = words

    def ended(self) -> None:
        """GDB has gone."""
        self.state = State.ENDED

    @property
    def unseen(self) -> bool:
        """Whether there is a stop, or a failure to run, that nobody has taken."""
        return self._stop is not None or bool(self._failure)

    @property
    def waiting(self) -> Mapping[str, Any]:
        """The stop that nobody has taken, which stays; empty where there is none."""
        return self._stop or {}

    @property
    def interrupted(self) -> bool:
        """Whether the stop that nobody has taken came from an interrupt."""
        return self._stop is not None and self._stop.get("signal-name") == "SIGINT"

    def take_stop(self) -> Mapping[str, Any] | None:
        """Return the stop that nobody has taken yet, as MI's `*stopped` carries it.

        Raises:
            GdbError: GDB took back that it had resumed the guest.
        """
        stop, self._stop = self._stop, None
        failure, self._failure = self._failure, ""
        if failure:
            raise GdbError("GDB could not resume the guest", words=failure.strip())
        return stop

    @contextlib.contextmanager
    def letting_go(self) -> Iterator[None]:
        """For the block, take the end of the inferior for what we asked for, not for a loss."""
        self._letting_go = True
        try:
            yield
        finally:
            self._letting_go = False

    def need(self, call: str, *allowed: State) -> None:
        """Raise unless the state is one of `allowed`.

        Raises:
            StateError: another state, which the message names with the one it needs.
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
        """Raise unless the guest has stood still since its `run`.

        Raises:
            StateError: it has run since, or runs.
        """
        self.need(what, State.STOPPED)
        if run != self.runs:
            raise StateError(
                f"{what}: the guest has run since that frame was taken", hint="take it from the newest stop"
            )

    def died(self, call: str) -> GuestDiedError:
        """Return the error that says so."""
        return GuestDiedError(
            f"{call}: the guest has exited, or QEMU was ended",
            hint="its last words are in the console log, QEMU's own in qemu.log",
        )

    def _stopped(self, record: mi.Record) -> None:
        stop: Mapping[str, Any] = {}
        with contextlib.suppress(GdbError):  # a stop that cannot be read is a stop all the same
            stop = record.payload()
        if str(stop.get("reason", "")).startswith("exited"):
            # When the guest powers off, QEMU says so, or just closes the connection: chance decides.
            self.state = State.GONE
        else:
            self.state = State.STOPPED
            self._stop = stop
        if self.on_stop is not None:
            self.on_stop()
