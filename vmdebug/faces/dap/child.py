"""GDB's own debug adapter as a child process: requests to it, its answers and events."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GdbError, UsageError
from vmdebug.faces.dap.wire import Log, Message, MessageReader, MessageWriter

ASK_SECONDS = 60.0
"""How long GDB may take to answer one request."""

_IN_PYTHON = "Error occurred in Python: "
"""What GDB puts before the errors of functions that are called through its command `python`."""

Answer = Callable[[Message], None]
"""Called with the response to a request, in the thread that reads GDB's messages, in their order."""


class GdbAdapter:
    """GDB as a debug adapter. Made by `start`.

    Args:
        child: GDB's process, with pipes.
        stderr: What it prints before it takes over its streams.
        log: Gets each message.
        on_event: Called with each event, in the thread that reads them.
        on_end: Called when GDB has ended.
    """

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        fds: Sequence[int] = (),
        log: Log,
        on_event: Callable[[Message], None],
        on_end: Callable[[], None],
    ) -> Self:
        """Start GDB; it exits at the end of its standard input, so at the latest with this process.

        Raises:
            HostError: it cannot be started.
        """
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        try:
            child = process.start(
                argv,
                env=env,
                stdin=process.PIPE,
                stdout=process.PIPE,
                stderr=stderr,
                session=True,
                pass_fds=fds,
            )
        except BaseException:
            stderr.close()
            raise
        return cls(child, stderr, log, on_event, on_end)

    def __init__(
        self,
        child: process.Child,
        stderr: Any,
        log: Log,
        on_event: Callable[[Message], None],
        on_end: Callable[[], None],
    ) -> None:
        assert child.stdin is not None  # noqa: S101 - for the type checker: both are pipes
        assert child.stdout is not None  # noqa: S101
        self._child = child
        self._stderr = stderr
        self._log = log
        self._on_event = on_event
        self._on_end = on_end
        self._writer = MessageWriter(child.stdin, log, "to GDB")
        self._reader = MessageReader(child.stdout)
        self._lock = threading.Lock()
        self._awaited: dict[int, Answer] = {}
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="GDB's messages", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether GDB has ended."""
        return self._ended

    def forward(self, command: str, arguments: Any, answer: Answer) -> int:
        """Send a request, and return its number at GDB.

        Args:
            command: Its name.
            arguments: Its arguments; None if it has none.
            answer: Called with the response; with a failure if GDB ends before.
        """
        request = {"type": "request", "command": command}
        if arguments is not None:
            request["arguments"] = arguments
        with self._lock:
            if not self._ended:
                number = self._writer.write(request)
                self._awaited[number] = answer
                return number
        answer(_lost(command))
        return 0

    def ask(self, command: str, deadline: Deadline | None = None, **arguments: Any) -> Message:
        """Send a request, wait for its response, and return the response's body.

        Raises:
            GdbError: GDB refused it, or has ended.
            DeadlineError: GDB does not answer.
        """
        deadline = deadline or Deadline.after(ASK_SECONDS)
        arrived = threading.Event()
        answers: list[Message] = []

        def answer(response: Message) -> None:
            answers.append(response)
            arrived.set()

        self.forward(command, arguments, answer)
        what = f"GDB to answer `{arguments.get('expression', command)}`"
        if not arrived.wait(deadline.left(what)):
            raise deadline.error(what)
        response = answers[0]
        if not response.get("success"):
            words = str(response.get("message", "no reason given")).removeprefix(_IN_PYTHON)
            raise GdbError(words.partition("\n")[0], command=command, words=words, detail=self._tail())
        body: Message = response.get("body") or {}
        return body

    def execute(self, line: str, deadline: Deadline | None = None) -> str:
        """Have GDB execute a command of its own, and return its output; raises as `ask` does."""
        result = self.ask("evaluate", deadline, expression=line, context="repl")
        return str(result.get("result", ""))

    def close(self, deadline: Deadline) -> None:
        """End GDB, by force if it does not end by itself. It detaches if it is still connected."""
        with contextlib.suppress(GdbError, DeadlineError):
            if not self._ended:
                self.ask("disconnect", deadline, terminateDebuggee=False)
        assert self._child.stdin is not None  # noqa: S101 - as above
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        process.ended(self._child, deadline.remaining)
        self.kill()

    def kill(self) -> None:
        """End GDB by force if it still runs, and reap it."""
        if self._child.returncode is None:
            process.end_group(self._child)
        self._thread.join(ASK_SECONDS)
        for stream in (self._child.stdin, self._child.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read(self) -> None:
        try:
            while (message := self._reader.read()) is not None:
                self._log.write("GDB", message)
                if message.get("type") == "event":
                    self._on_event(message)
                elif message.get("type") == "response":
                    with self._lock:
                        answer = self._awaited.pop(int(message.get("request_seq", 0)), None)
                    if answer is not None:
                        answer(message)
        except (UsageError, ValueError):  # a program that speaks another protocol; a closed stream
            pass
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            awaited, self._awaited = self._awaited, {}
        for answer in awaited.values():
            answer(_lost("the request"))
        self._on_end()

    def _tail(self) -> str:
        if not self._ended or self._stderr.closed:
            return ""
        self._stderr.seek(0)
        return process.tail(self._stderr.read().decode(errors="replace"))


def _lost(command: str) -> Message:
    return {"success": False, "message": f"GDB has ended; it did not answer {command}"}
