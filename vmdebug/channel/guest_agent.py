"""Runs commands with qemu-guest-agent; see docs/interop/qemu-ga-ref.txt of QEMU.

It handles one request at a time and has no streams: the request contains all of a command's input, and the
output arrives when the command has ended, up to 16 MiB (GUEST_EXEC_MAX_OUTPUT of qga/commands.c). Several
commands can run at once; their requests wait for each other.
"""

from __future__ import annotations

import base64
import json
import os
import select
import time
from collections.abc import Callable
from typing import Any

from vmdebug.channel import port, shell
from vmdebug.channel.port import Port, PortAddress
from vmdebug.channel.shell import Output, Streams
from vmdebug.channel.watch import Watch
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, VmdebugError, VmError

WANTED = "qemu-guest-agent in the guest"

FIRST_PAUSE = 0.01
LAST_PAUSE = 0.25
"""Seconds between two requests for the status of a command."""

TERM_SECONDS = 0.5
"""How long a command may take to end at SIGTERM before it gets SIGKILL."""

PIECE = 4 << 20
"""Bytes that one command carries well; the agent keeps 16 MiB of output, and a request in memory."""

REQUEST_SECONDS = 5.0
"""How long the agent may take to answer a request about a running command."""

# qemu-ga has the environment of a service. On NixOS this file sets that of a login.
_RUN = (
    'if [ -r /etc/set-environment ]; then . /etc/set-environment; fi; cd "${HOME:-/}"; exec setsid sh -c "$0"'
)
_SENTINEL = b"\xff"


class Line:
    """A connection to qemu-guest-agent.

    Args:
        opened: An open port, which `close` closes.
        watch: Watches for the guest's death or stop.
    """

    def __init__(self, opened: Port, watch: Watch) -> None:
        self._port = opened
        self._watch = watch
        self._received = b""
        self._token = int.from_bytes(os.urandom(4), "little") >> 1

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._port.fileno()

    def ask(self) -> None:
        """Send a request to synchronise; it can be repeated."""
        # This byte, which is invalid in JSON, makes the agent discard an incomplete request of an earlier
        # client.
        self._send(_SENTINEL + _request("guest-sync-delimited", {"id": self._token}))

    def answered(self) -> bool:
        """Read what has arrived, and return whether the agent has answered `ask`."""
        while (line := self._line()) is not None:
            if _decoded(line.rpartition(_SENTINEL)[2]) == {"return": self._token}:
                return True
        return False

    def call(self, command: str, arguments: dict[str, Any], deadline: Deadline) -> Any:
        """Execute a command of the agent, and return its result.

        Raises:
            VmError: the agent refused it.
            GuestDiedError: the guest died.
            DeadlineError: the agent did not answer.
        """
        self._send(_request(command, arguments))
        while (line := self._line()) is None:
            if deadline.passed:
                raise deadline.error(f"{WANTED} to answer {command}", detail=self._watch.tail(10))
            self._watch.wait({self.fileno(): select.POLLIN}, deadline.remaining, WANTED)
        answer = _decoded(line)
        if "error" in answer:
            raise VmError(f"qemu-guest-agent refused {command}: {answer['error'].get('desc', '')}")
        return answer.get("return")

    def close(self) -> None:
        """Disconnect."""
        self._port.close()

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._watch.wait({self.fileno(): select.POLLOUT}, REQUEST_SECONDS, WANTED)
            try:
                sent = self._port.send(rest)
            except ConnectionError as error:
                raise self._watch.died(WANTED) from error
            if not sent:
                return  # the buffer is full, because the agent does not read
            rest = rest[sent:]

    def _line(self) -> bytes | None:
        if b"\n" not in self._received:
            data = self._port.receive()
            if data == b"":
                raise self._watch.died(WANTED)
            self._received += data or b""
        if b"\n" not in self._received:
            return None
        line, _, self._received = self._received.partition(b"\n")
        return line


class GuestAgentShell:
    """Runs commands with qemu-guest-agent.

    Args:
        address: Its port.
        watch: Returns a watch for the guest's death or stop while a command runs.
    """

    largest: int | None = PIECE

    def __init__(self, address: PortAddress, *, watch: Callable[[], Watch]) -> None:
        self._address = address
        self._watch = watch

    def begin(self, line: bytes, streams: Streams, *, deadline: Deadline) -> GuestAgentRunning:
        """Start a command; see `Shell.begin`. If its input is a descriptor, read all of it first."""
        arguments = {
            "path": "/bin/sh",
            "arg": ["-c", _RUN, line.decode(errors="surrogateescape")],
            "capture-output": True,
        }
        if (data := shell.all_input(streams, deadline)) is not None:
            arguments["input-data"] = base64.b64encode(data).decode()
        pid = self.call("guest-exec", arguments, deadline)["pid"]
        return GuestAgentRunning(self, pid, line, streams)

    def call(self, command: str, arguments: dict[str, Any], deadline: Deadline) -> Any:
        """Wait until no other client uses the agent, and execute one of its commands; see `Line.call`."""
        watch = self._watch()
        try:
            opened = port.take([self._address], what=f"a turn with {WANTED}", deadline=deadline)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise watch.died(WANTED) from error
        line = Line(opened, watch)
        try:
            line.ask()
            while not line.answered():
                if deadline.passed:
                    raise deadline.error(WANTED, detail=watch.tail(10))
                watch.wait({line.fileno(): select.POLLIN}, deadline.remaining, WANTED)
            return line.call(command, arguments, deadline)
        finally:
            line.close()
            watch.close()


class GuestAgentRunning:
    """A command that qemu-guest-agent runs."""

    def __init__(self, agent: GuestAgentShell, pid: int, line: bytes, streams: Streams) -> None:
        self._agent = agent
        self._pid = pid
        self._shown = shell.shown(line)
        self._streams = streams
        self._output: Output | None = None
        self._failure: BaseException | None = None

    def result(self, deadline: Deadline) -> Output:
        """Wait for the command to end; see `Running.result`."""
        if self._failure is not None:
            raise self._failure
        if self._output is None:
            try:
                self._output = self._ended(deadline)
            except StateError:
                raise  # the command continues with the guest
            except BaseException as error:
                self._failure = error
                self._end()
                raise
        return self._output

    def wait(self, seconds: float) -> bool:  # noqa: ARG002 - the protocol's signature
        """Return True: only `result` waits; see `channel.shell.Running.wait`."""
        return True

    def cancel(self) -> None:
        """End the command; see `Running.cancel`."""
        if self._output is None and self._failure is None:
            self._failure = StateError(f"{self._shown} was cancelled")
            self._end()

    def settle(self) -> bool:
        """Return True: the agent keeps the result; see `Running.settle`."""
        return True

    def _ended(self, deadline: Deadline) -> Output:
        pause = FIRST_PAUSE
        while True:
            found = self._agent.call(
                "guest-exec-status",
                {"pid": self._pid},
                Deadline.after(max(deadline.remaining, REQUEST_SECONDS)),
            )
            if found["exited"]:
                return self._delivered(found)
            time.sleep(min(pause, deadline.left(f"{self._shown} to end in the guest")))
            pause = min(2 * pause, LAST_PAUSE)

    def _delivered(self, found: dict[str, Any]) -> Output:
        if found.get("out-truncated") or found.get("err-truncated"):
            raise VmError(
                f"{self._shown} wrote more than the 16 MiB that qemu-guest-agent keeps",
                hint="redirect its output to a file in the guest, and read that in parts",
            )
        outputs = [base64.b64decode(found.get(key, "")) for key in ("out-data", "err-data")]
        sinks = (self._streams.stdout, self._streams.stderr)
        for number, sink in enumerate(sinks):
            if sink is not None and outputs[number]:
                sink(outputs[number])
                outputs[number] = b""
        status = 128 + found["signal"] if "signal" in found else found.get("exitcode", 0)
        return Output(outputs[0], outputs[1], status)

    def _end(self) -> None:
        """End the command with its process group, first with SIGTERM; `_RUN` made it a group leader."""
        # dash's kill does not accept `--`.
        line = f"kill -TERM -{self._pid}; sleep {TERM_SECONDS}; kill -KILL -{self._pid}"
        try:
            words = {"path": "/bin/sh", "arg": ["-c", line]}
            self._agent.call("guest-exec", words, Deadline.after(REQUEST_SECONDS))
        except VmdebugError:
            return  # the caller is already raising the reason


def _request(command: str, arguments: dict[str, Any]) -> bytes:
    # Surrogates become the bytes that they stand for, so the text may not be valid UTF-8.
    words = {"execute": command, "arguments": arguments}
    return json.dumps(words, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
