"""Waits for a shell on the console, during the boot or at any later time.

Only an answer proves that a shell reads the console: a prompt can have any form, and kernel messages may
follow it. So vmdebug types a line that any shell answers, as soon as the output looks like a prompt, or
after a period of silence.
"""

from __future__ import annotations

import enum
import math
import re
import time
from typing import Protocol

from vmdebug.channel.log.messages import MessageFilter
from vmdebug.channel.serial import framing
from vmdebug.channel.watch import NO_ANSWER_HINT
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, VmError

KEPT = 8192
"""Bytes at the end of a console's output that are examined."""

WANTED = "a shell on the guest's console"

STEP = 0.02
"""Seconds between two reads of the log."""

INTERRUPT_PATIENCE = 0.2
"""Seconds to wait after a ^C, before the next line."""

FIRST_PATIENCE = 0.5
LAST_PATIENCE = 4.0
"""Seconds until an unanswered line is typed again; the time doubles with each repetition."""


class Look(enum.Enum):
    """The program that seems to read the console."""

    PROMPT = "a shell"
    LOGIN = "a login"
    EMERGENCY = "systemd's emergency mode"
    STAGE_1 = "NixOS's stage 1, which failed"
    OTHER = "an unknown program"


QUIET = {
    # With less, a "# " within a line that is still being written would count as a prompt.
    Look.PROMPT: 0.05,
    # An automatic login continues on the same line.
    Look.LOGIN: 1.5,
    Look.EMERGENCY: 1.5,
    Look.STAGE_1: 1.5,
    # A boot loader stops its countdown, which prints every second, when something is typed.
    Look.OTHER: 2.0,
}
"""Seconds of silence after which vmdebug relies on what the console looks like."""

HINTS = {
    Look.LOGIN: 'enable automatic login: on NixOS, `services.getty.autologinUser = "root";`; '
    "elsewhere, `agetty --autologin root`",
    Look.EMERGENCY: "the log has the reason; enter the root password in `vmdebug console`",
    Look.STAGE_1: "build the drivers for its root file system into the kernel, or use an initrd with this "
    "kernel's modules",
}
"""What to do about a program that prevents a shell."""

# CSI and OSC sequences, ECMA-48 5.4 and 5.6: colours, bracketed paste, titles.
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_=>])")

_LOOKS = (
    # agetty, busybox getty, login(1)
    (Look.LOGIN, re.compile(rb"(?:^|\s)(?:login|[Pp]assword): *\Z")),
    # sulogin(8), below systemd's emergency.service
    (
        Look.EMERGENCY,
        re.compile(rb"(?:Give root password|Press Enter) for [^\n]*maintenance[^\n]*\n?[^\n]*\Z"),
    ),
    # nixos/modules/system/boot/stage-1-init.sh
    (Look.STAGE_1, re.compile(rb"An error occurred in stage 1 of the boot process[^$#]*\Z")),
    # Ends of prompts, including an arrow and an angle quote in UTF-8.
    (Look.PROMPT, re.compile(rb"(?:[#$%>]|\xe2\x9d\xaf|\xc2\xbb) *\Z")),
)


def look(text: bytes) -> Look:
    """Return the program that reads a console, judged by the end of its output.

    Escape sequences and kernel messages are ignored.
    """
    message_filter = MessageFilter()
    # The text held back at the end may be a prompt, such as "[root@nixos:~]# ".
    plain = message_filter.feed(text[-KEPT:]) + message_filter.held
    seen = _ESCAPES.sub(b"", plain).replace(b"\r", b"")
    for kind, pattern in _LOOKS:
        if pattern.search(seen):
            return kind
    return Look.OTHER


class Line(Protocol):
    """The part of a console that this module, `shell` and `exchange` use; see `SerialLine`."""

    def send(self, text: str, *, patience: float = ...) -> None:
        """Type text; the guest may accept nothing for so many seconds."""

    def receive(self, seconds: float, wanted: str) -> bytes:
        """Wait for output of the guest, and return it."""

    def take(self) -> bytes:
        """Return and consume the output that no `expect` has matched."""

    def put_back(self, text: bytes) -> None:
        """Insert text before the output that `expect` reads next."""

    def logged(self, size: int) -> bytes:
        """Return the last bytes of the log."""

    def tail(self, lines: int = ...) -> str:
        """Return the last lines of the log."""

    def timeout_error(self, deadline: Deadline, wanted: str, *, hint: str = "") -> DeadlineError:
        """Return the error for a passed deadline."""

    def note(self, what: str) -> None:
        """Write this client's activity into the lock file."""


def wait(line: Line, deadline: Deadline, *, interrupting: bool, before: str = "") -> None:
    """Wait until a shell answers on the line.

    Args:
        line: The console. Its output stays for `expect`, except the typed line and its answer.
        deadline: When to give up.
        interrupting: Whether a command of an earlier client may run in the foreground; it is ended first.
        before: A command to run before the answer; it may run more than once.

    Raises:
        VmError: a program on the console asks for a password or a decision.
        GuestDiedError: the guest died.
        DeadlineError: no shell answered.
    """
    unread = line.take()
    output = b""
    question = _Question(interrupting=interrupting, before=before)
    watch = _Watch(line)
    try:
        while (answer := question.answer(output)) is None:
            # After an earlier client's command, type at once, whatever the console looks like.
            if watch.quiet() >= max(question.patience, 0.0 if interrupting else QUIET[watch.seen]):
                if watch.seen in HINTS:
                    raise VmError(
                        f"wanted {WANTED}, found {watch.seen.value}",
                        hint=HINTS[watch.seen],
                        detail=line.tail(5),
                    )
                question.ask(line, deadline.left(WANTED))
                watch.restart()
            output += line.receive(min(STEP, _left(line, deadline)), WANTED)
        output = question.without(output[:answer]) + output[answer:]
    finally:
        line.put_back(unread + output)


def _left(line: Line, deadline: Deadline) -> float:
    if deadline.passed:
        raise deadline.error(WANTED, hint=NO_ANSWER_HINT, detail=line.tail(5))
    return deadline.left(WANTED)


class _Watch:
    """The look of the console, and for how long it has been silent, by its log, which has all output."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._text = line.logged(KEPT)
        self.seen = look(self._text)
        # A prompt that was there before counts at once.
        self._since = -math.inf if self.seen is Look.PROMPT else time.monotonic()

    def quiet(self) -> float:
        """Return for how many seconds the console has been silent."""
        text = self._line.logged(KEPT)
        if text != self._text:
            self._text = text
            self.seen = look(text)
            self.restart()
        return time.monotonic() - self._since

    def restart(self) -> None:
        """Restart the count."""
        self._since = time.monotonic()


class _Question:
    """A line that only a shell at its prompt answers; `ask` types it again and again.

    Args:
        interrupting: Whether to type ^C first, and then to wait: a shell drops input that follows at once.
        before: A command on the same line.
    """

    def __init__(self, *, interrupting: bool, before: str) -> None:
        self._token = framing.token()
        self._interrupting = interrupting
        self._before = before
        self._interrupted = False
        self._asked = 0
        self._patience = FIRST_PATIENCE
        self.patience = 0.0

    def ask(self, line: Line, patience: float) -> None:
        if self._interrupting and not self._interrupted:
            line.send(framing.INTERRUPT, patience=patience)
            self._interrupted, self.patience = True, INTERRUPT_PATIENCE
            return
        self._interrupted = False
        self._asked += 1
        words = framing.question(self._token, self._asked, helper=self._interrupting, before=self._before)
        line.send(words, patience=patience)
        self.patience = self._patience
        self._patience = min(2 * self._patience, LAST_PATIENCE)

    def answer(self, output: bytes) -> int | None:
        """Return the offset at which the answer to the last `ask` ends; None if there is none yet."""
        wanted = framing.answer(self._token, self._asked)
        at = output.find(wanted)
        return None if at < 0 else at + len(wanted)

    def without(self, output: bytes) -> bytes:
        """Return output without the typed lines and their answers; kernel messages in them stay."""
        token = self._token.encode()
        lines = output.splitlines(keepends=True)
        return b"".join(_messages(line) if token in line else line for line in lines)


def _messages(line: bytes) -> bytes:
    message_filter = MessageFilter()
    message_filter.feed(line)
    return b"".join(message_filter.messages)
