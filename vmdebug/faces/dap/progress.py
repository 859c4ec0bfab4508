"""Shows the steps of a start to the client: as progress where it can show that, and as text otherwise."""

from __future__ import annotations

import threading

from vmdebug.errors import VmdebugError
from vmdebug.faces.dap.runs import Emit
from vmdebug.faces.dap.wire import Message
from vmdebug.progress import Step


class CancelledError(VmdebugError):
    """The client has ended the session during a long step."""


class Progress:
    """Reports of long steps; an instance is a `Report`.

    Args:
        emit: Sends an event.
        shown: Whether the client shows progress.
        title: The whole, in words.
    """

    def __init__(self, emit: Emit, *, shown: bool, title: str) -> None:
        self._emit = emit
        self._shown = shown
        self._what = ""
        self._cancelled = threading.Event()
        self._id = "vmdebug-start"
        if shown:
            emit("progressStart", {"progressId": self._id, "title": title, "cancellable": False})

    def cancel(self) -> None:
        """Have the next report raise `CancelledError`."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise if the session has been cancelled.

        Raises:
            CancelledError: the client has ended the session.
        """
        if self._cancelled.is_set():
            raise CancelledError("the session was ended before the guest had started")

    def __call__(self, step: Step) -> None:
        """Report a step.

        Raises:
            CancelledError: the client has ended the session.
        """
        self.check()
        fraction = "" if not step.total else f" {step.done or 0}/{step.total}"
        if self._shown:
            body: Message = {"progressId": self._id, "message": f"{step.what}{fraction} {step.note}".rstrip()}
            if step.total:
                body["percentage"] = 100 * (step.done or 0) / step.total
            self._emit("progressUpdate", body)
        elif step.what != self._what:
            self._emit(
                "output", {"category": "console", "output": f"{step.what} {step.note}".rstrip() + "\n"}
            )
        self._what = step.what

    def end(self) -> None:
        """End the progress."""
        if self._shown:
            self._emit("progressEnd", {"progressId": self._id})
