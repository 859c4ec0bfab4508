"""kgdb: a person's GDB on a machine that is no VM.

The stub is in the machine's own kernel (Documentation/dev-tools/kgdb.rst), and answers only while
that stands still. So it is asked until it answers, before GDB starts: GDB itself would say no more
than that a packet is missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import select

from vmdebug.deadline import Deadline
from vmdebug.debugger.line import Line, closed, hold, opened
from vmdebug.errors import DeadlineError
from vmdebug.progress import Report, Step

BAUD = 115200
"""What `kgdboc=ttyS0,115200` of every guide sets."""

BEFORE = (
    "set $vmd_kgdb = 1",
    # A running kernel has no ear for GDB's ^C; on a line that is its console it has one for sysrq.
    "set remote interrupt-sequence BREAK-g",
)
"""What GDB is told first."""

ENTER = "echo g > /proc/sysrq-trigger"
"""What brings a machine into kgdb."""

_QUESTION = b"$?#3f"
"""Why it stands still. A kernel that is in kdb takes it for the wish to be in kgdb."""

_ANSWER = re.compile(rb"\$[ST][0-9a-f]{2}[^#]*#[0-9a-f]{2}")
_ASK_SECONDS = 1.0


def come(line: Line, baud: int, *, deadline: Deadline, report: Report) -> int:
    """Wait for a machine to come into kgdb.

    Args:
        line: The way to the stub.
        baud: Of a serial device.
        deadline: When waiting for the stub is given up.
        report: Told each second that the machine has to be waited for.

    Returns:
        The descriptor that says who is attached, for `attach.become`; see `line.hold`.

    Raises:
        StateError: another GDB, or another program, has the line.
        HostError: the line cannot be opened.
        VmError: it was closed.
        DeadlineError: the machine did not come into kgdb.
    """
    held = hold(line)
    try:
        with opened(line, baud) as descriptor:
            wait(descriptor, line, deadline=deadline, report=report)
    except BaseException:
        os.close(held)
        raise
    return held


def settings(line: Line, baud: int) -> tuple[str, ...]:
    """Return what GDB is told before anything else."""
    return (*BEFORE, f"set serial baud {baud}") if line.kind == "device" else BEFORE


def wait(descriptor: int, line: Line, *, deadline: Deadline, report: Report) -> None:
    """Ask until the stub answers.

    Args:
        descriptor: The open line.
        line: The same, for messages.
        deadline: When it is given up.
        report: Told each second that the machine is waited for.

    Raises:
        VmError: the other side closed the line.
        DeadlineError: nothing answered.
    """
    conversation = _Conversation(descriptor, line)
    what = f"kgdb to answer at {line.endpoint}"
    while True:
        conversation.ask()
        try:
            second = Deadline.after(min(_ASK_SECONDS, deadline.left(what)))
        except DeadlineError as error:
            raise DeadlineError(error.message, hint=f"on the machine: {ENTER}", detail=_never()) from None
        conversation.listen(second)
        if conversation.answers:
            return
        report(Step(f"waiting for {what}", note=f"on the machine: {ENTER}"))


class _Conversation:
    """Questions and answers, until there are as many of these as of those.

    Questions wait in the line while the machine runs, and are all answered when it stops: what is not
    read here GDB would take for the answer to a question of its own.
    """

    def __init__(self, descriptor: int, line: Line) -> None:
        self._descriptor = descriptor
        self._line = line
        self._seen = bytearray()
        self.asked = 0
        self.answers = 0

    def ask(self) -> None:
        self.asked += self._write(_QUESTION)

    def listen(self, deadline: Deadline) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        with contextlib.suppress(DeadlineError):  # to ask again
            while self.answers < self.asked and poll.poll(deadline.left("an answer") * 1000):
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
            raise closed(self._line, error.strerror) from error
        if not data:
            raise closed(self._line, "the other side hung up")
        return data

    def _write(self, data: bytes) -> bool:
        try:
            os.write(self._descriptor, data)
        except BlockingIOError:
            return False  # the line is full of questions
        except OSError as error:
            raise closed(self._line, error.strerror) from error
        return True


def _never() -> str:
    return (
        "nothing answers while the machine runs; its kernel needs CONFIG_KGDB_SERIAL_CONSOLE and\n"
        "kgdboc=ttyS0,115200 on its command line (or in /sys/module/kgdboc/parameters/kgdboc), for its own\n"
        "name and speed of the line; kgdbwait has it wait for GDB as it boots"
    )
