"""What the client is told about the guest's runs and stops.

GDB reports every stop, also those that the adapter itself causes: while it connects, in a step that follows
its task, and while it sets breakpoints in a guest that runs. The client must not see these.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vmdebug.deadline import Deadline
from vmdebug.faces.dap.wire import Message

Emit = Callable[[str, Message], None]
"""Sends an event to the client."""


class Runs:
    """The state of the guest as GDB reports it.

    `stopped`, `arrived`, `continued` and `ended` are called by the thread that reads GDB's messages.

    Args:
        emit: Sends an event to the client.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._changed = threading.Condition()
        self._hidden = 0
        self._held_back: Message | None = None
        self._last: Message = {}
        self.running = False
        self.over = False
        self.pausing = False
        self.trouble: dict[int, str] = {}
        """The kind of kernel trouble for each breakpoint of `vmd_dap.catch`."""

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Tell the client nothing of stops and runs in the block."""
        with self._changed:
            self._hidden += 1
        try:
            yield
        finally:
            with self._changed:
                self._hidden -= 1

    @property
    def interrupted(self) -> bool:
        """Whether the last stop was an interruption, and no breakpoint."""
        return not any(number > 0 for number in self._last.get("hitBreakpointIds", ()))

    def resumed(self) -> None:
        """Note that the guest was resumed, which GDB does not report for its client's own requests."""
        with self._changed:
            self.running, self._held_back = True, None

    def stopped(self, body: Message) -> None:
        """Handle GDB's event of a stop."""
        with self._changed:
            self.running = False
            self._last = dict(body)
            hit = [number for number in body.get("hitBreakpointIds", ()) if number > 0]
            internal = bool(body.get("hitBreakpointIds")) and not hit
            told = self._hidden == 0
            # An internal breakpoint for new modules continues by itself.
            self._held_back = dict(body) if internal and told else None
            self._changed.notify_all()
        if told and not internal:
            self.tell()

    def arrived(self, body: Message) -> None:
        """Note where a step has ended of whose stops the client was told nothing.

        Args:
            body: Has "running"; and "reason" and "hitBreakpointIds" if they are not those of the last stop.
        """
        with self._changed:
            self.running = bool(body.get("running"))
            if "reason" in body:
                hit = {key: body[key] for key in ("reason", "hitBreakpointIds") if key in body}
                self._last = {key: self._last[key] for key in ("threadId",) if key in self._last} | hit
            self._changed.notify_all()

    def continued(self, body: Message) -> None:
        """Handle GDB's event of a run that the client did not ask for: at GDB's own prompt."""
        with self._changed:
            self.running = True
            told = self._hidden == 0 and self._held_back is None
            self._held_back = None
        if told:
            self._emit("continued", body)

    def ended(self) -> None:
        """Note that the guest, or GDB, has ended."""
        with self._changed:
            self.running, self.over = False, True
            self._changed.notify_all()

    def tell(self, reason: str | None = None, **more: Any) -> None:
        """Tell the client of the last stop.

        Args:
            reason: The reason; None: GDB's.
            **more: More of the event's body.
        """
        body: Message = {"threadId": 1, "allThreadsStopped": True, **self._last}
        hit = [number for number in body.pop("hitBreakpointIds", ()) if number > 0]
        kind = next((self.trouble[number] for number in hit if number in self.trouble), None)
        if reason is not None:
            body["reason"] = reason
        elif kind is not None:
            body |= {"reason": "exception", "description": f"kernel {kind}", "text": f"kernel {kind}"}
        elif hit:
            body["hitBreakpointIds"] = hit
        elif body.get("reason") in ("breakpoint", "stopped"):
            body["reason"] = "step"
        elif self.pausing and body.get("reason") != "step":
            body["reason"] = "pause"
        self.pausing = False
        self._emit("stopped", body | more)

    def wait_stopped(self, deadline: Deadline) -> None:
        """Wait until the guest is stopped, or has ended.

        Raises:
            DeadlineError: it still runs.
        """
        with self._changed:
            while self.running and not self.over:
                self._changed.wait(deadline.left("the guest to stop"))
