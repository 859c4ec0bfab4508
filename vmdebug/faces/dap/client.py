"""The client's end: responses and events to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmdebug.errors import GdbError, VmdebugError
from vmdebug.faces.dap.wire import Log, Message, MessageWriter

NOT_STOPPED = "notStopped"
"""GDB's word, and the protocol's, for a request that needs a stopped guest."""

RUNS = "the guest runs: pause it first"


class Client:
    """Sends responses and events.

    Args:
        writer: Writes to the client.
        log: Gets each message.
    """

    def __init__(self, writer: MessageWriter, log: Log) -> None:
        self._writer = writer
        self.log = log
        self.able: Mapping[str, Any] = {}
        """The arguments of the client's `initialize`."""

    def emit(self, event: str, body: Message | None = None) -> None:
        """Send an event."""
        message: Message = {"type": "event", "event": event}
        self._writer.write(message if body is None else {**message, "body": body})

    def say(self, text: str, category: str = "console") -> None:
        """Show a text to the user."""
        self.emit("output", {"category": category, "output": f"{text}\n"})

    def succeed(self, request: Message, body: Message | None = None) -> None:
        """Answer a request."""
        self._writer.write(_response(request, success=True) | ({} if body is None else {"body": body}))

    def fail(self, request: Message, error: VmdebugError) -> None:
        """Answer a request with an error, and show its evidence."""
        if error.detail:
            self.say(error.detail, "stderr")
        words = error.words if isinstance(error, GdbError) and error.words else error.message
        text = RUNS if words == NOT_STOPPED else "\n".join(filter(None, (words, error.hint)))
        self.refuse(request, words, text)

    def refuse(self, request: Message, message: str, text: str | None = None) -> None:
        """Answer a request with an error.

        Args:
            request: The request.
            message: The error in one line.
            text: The error for the user; None: the same.
        """
        shown = message if text is None else text
        # A client replaces `{NAME}` in a format.
        plain = {"format": shown} if "{" not in shown else {"format": "{text}", "variables": {"text": shown}}
        error = {"id": 1, "showUser": True, **plain}
        self._writer.write(_response(request, success=False) | {"message": message, "body": {"error": error}})

    def relay(self, request: Message, answer: Message, body: Any) -> None:
        """Answer a request with GDB's answer.

        Args:
            request: The client's request.
            answer: GDB's response.
            body: The response's body, translated.
        """
        if answer.get("success"):
            self.succeed(request, body)
            return
        words = str(answer.get("message", "GDB gave no reason"))
        text = RUNS if words == NOT_STOPPED else None
        self.refuse(request, words, text)


def _response(request: Message, *, success: bool) -> Message:
    return {
        "type": "response",
        "request_seq": request.get("seq", 0),
        "command": request.get("command", ""),
        "success": success,
    }
