"""The gdbstub of a machine in kgdb.

It answers only while the kernel is stopped in kgdb. So vmdebug asks it until it answers, before it starts
GDB: GDB itself would only say that a packet is missing.
"""

from __future__ import annotations

import contextlib
import os
import re

from vmdebug.deadline import Deadline, wait_ready
from vmdebug.debugger.kgdb.endpoint import Endpoint, closed, opened
from vmdebug.errors import DeadlineError
from vmdebug.progress import Report, Step

BEFORE = (
    "set $vmd_kgdb = 1",
    # A running kernel does not read GDB's ^C; on the line of its console it understands the break of sysrq.
    "set remote interrupt-sequence BREAK-g",
)
"""GDB's settings for kgdb."""

ENTER = "echo g > /proc/sysrq-trigger"
"""The command that stops a machine in kgdb."""

_QUESTION = b"$?#3f"
"""Asks for the reason of the stop. It also switches a kernel from kdb to kgdb."""

_ANSWER = re.compile(rb"\$[ST][0-9a-f]{2}[^#]*#[0-9a-f]{2}")
_ASK_SECONDS = 1.0


def settings(endpoint: Endpoint, baud: int) -> tuple[str, ...]:
    """Return the commands that GDB runs before anything else."""
    return (*BEFORE, f"set serial baud {baud}") if endpoint.kind == "device" else BEFORE


def wait(endpoint: Endpoint, baud: int, *, timeout: float, report: Report) -> None:
    """Wait until the stub answers.

    Args:
        endpoint: Where the stub is.
        baud: The speed of a serial device.
        timeout: Seconds.
        report: Called each second until the machine answers.

    Raises:
        StateError: another program has the device open.
        HostError: the endpoint cannot be opened.
        VmError: the other side closed the connection.
        DeadlineError: nothing answered.
    """
    with opened(endpoint, baud) as descriptor:
        ask(descriptor, endpoint, deadline=Deadline.after(timeout), report=report)


def ask(descriptor: int, endpoint: Endpoint, *, deadline: Deadline, report: Report) -> None:
    """Ask at an open endpoint until the stub answers; see `wait`."""
    conversation = _Conversation(descriptor, endpoint)
    what = f"kgdb to answer at {endpoint.address}"
    while True:
        conversation.ask()
        try:
            second = Deadline.after(min(_ASK_SECONDS, deadline.left(what)))
        except DeadlineError as error:
            raise DeadlineError(error.message, hint=f"on the machine: {ENTER}", detail=_no_answer()) from None
        conversation.listen(second)
        if conversation.answers:
            return
        report(Step(f"waiting for {what}", note=f"on the machine: {ENTER}"))


class _Conversation:
    """Questions and answers, until each question has its answer.

    The questions wait in the line while the machine runs, and the stub answers all of them when it stops. An
    answer that is not read here GDB would take for the answer to its own question.
    """

    def __init__(self, descriptor: int, endpoint: Endpoint) -> None:
        self._descriptor = descriptor
        self._endpoint = endpoint
        self._seen = bytearray()
        self.asked = 0
        self.answers = 0

    def ask(self) -> None:
        self.asked += self._write(_QUESTION)

    def listen(self, deadline: Deadline) -> None:
        with contextlib.suppress(DeadlineError):  # to ask again
            while self.answers < self.asked and wait_ready(
                self._descriptor, seconds=deadline.left("an answer")
            ):
                self._take(self._read())

    def _take(self, data: bytes) -> None:
        self._seen += data
        while found := _ANSWER.search(self._seen):
            del self._seen[: found.end()]
            self._write(b"+")
            self.answers += 1

    def _read(self) -> bytes:
        try:
            data = os.read(self._descriptor, 4096)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise closed(self._endpoint, error.strerror) from error
        if not data:
            raise closed(self._endpoint, "the other side hung up")
        return data

    def _write(self, data: bytes) -> bool:
        try:
            os.write(self._descriptor, data)
        except BlockingIOError:
            return False  # the line is full of questions
        except OSError as error:
            raise closed(self._endpoint, error.strerror) from error
        return True


def _no_answer() -> str:
    return (
        "the stub answers only while the kernel is stopped in kgdb. That kernel needs\n"
        "CONFIG_KGDB_SERIAL_CONSOLE, and kgdboc=ttyS0,115200, with its name and speed of the line, on its\n"
        "command line or in /sys/module/kgdboc/parameters/kgdboc. With kgdbwait it waits for GDB at boot"
    )
