"""Waiting for a shell on the console, of a guest that boots or has long been up.

Only an answer proves a shell: its prompt may be any, may be long in the past,
and may be buried under kernel messages. So a line is typed that a shell answers,
as soon as the text looks like a prompt, or when all has been quiet for a while.
"""

from __future__ import annotations

import enum
import math
import re
import time
from typing import Protocol

from vmdebug.channel.log.messages import Denoiser
from vmdebug.channel.serial import framing
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, VmError

KEPT = 8192
"""Bytes at the end of a console's text that are looked at."""

WANTED = "a shell on the guest's console"

STEP = 0.02
"""Seconds between two looks at the log."""

INTERRUPT_PATIENCE = 0.2
"""Seconds that a shell has to take in a ^C."""

FIRST_PATIENCE = 0.5
LAST_PATIENCE = 4.0
"""Seconds until an unanswered line is typed again; each time twice as long."""


class Look(enum.Enum):
    """Who seems to read the line."""

    PROMPT = "a shell"
    LOGIN = "a login"
    EMERGENCY = "systemd's emergency mode"
    STAGE_1 = "NixOS's stage 1, which failed"
    OTHER = "nobody that is known"


QUIET = {
    # Shorter than this, and a "# " in the middle of a line is taken for a prompt.
    Look.PROMPT: 0.05,
    # An automatic login goes on on the same line.
    Look.LOGIN: 1.5,
    Look.EMERGENCY: 1.5,
    Look.STAGE_1: 1.5,
    # A boot loader stops for what is typed to it; its countdown speaks every second.
    Look.OTHER: 2.0,
}
"""Seconds without a word after which the look of a console is believed."""

HINTS = {
    Look.LOGIN: 'have it log in by itself: NixOS, `services.getty.autologinUser = "root";`; '
    "elsewhere, `agetty --autologin root`",
    Look.EMERGENCY: "the log says what failed; `vmdebug console` takes the root password",
    Look.STAGE_1: "what its root file system needs must be built into the kernel, or the initrd's modules "
    "be this kernel's",
}
"""What to do about those who will not let a shell come."""

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
    # Ends of prompts: also the bytes of an arrow and of an angle quote in UTF-8.
    (Look.PROMPT, re.compile(rb"(?:[#$%>]|\xe2\x9d\xaf|\xc2\xbb) *\Z")),
)


def look(text: bytes) -> Look:
    """Return who reads a console, by the end of what it has shown.

    Escape sequences and kernel messages are passed over.
    """
    denoiser = Denoiser()
    # What is held back at the end may be a prompt: "[root@nixos:~]# ".
    plain = denoiser.feed(text[-KEPT:]) + denoiser.held
    seen = _ESCAPES.sub(b"", plain).replace(b"\r", b"")
    for kind, pattern in _LOOKS:
        if pattern.search(seen):
            return kind
    return Look.OTHER


class Line(Protocol):
    """What waiting for a shell, and talking to it, needs of a console."""

    def send(self, text: str) -> None:
        """Type something."""

    def receive(self, seconds: float, wanted: str) -> bytes:
        """Return what the guest says next."""

    def take(self) -> bytes:
        """Return, and use up, what came and was matched by no `expect`."""

    def put_back(self, text: bytes) -> None:
        """Have `expect` see something again."""

    def logged(self, size: int) -> bytes:
        """Return the last bytes of the log."""

    def tail(self, lines: int = ...) -> str:
        """Return the last lines of the log."""

    def late(self, deadline: Deadline, wanted: str, *, hint: str = "") -> DeadlineError:
        """Return the error that says what was waited for."""

    def note(self, what: str) -> None:
        """Write into the lock what this client does."""


def wait(line: Line, deadline: Deadline, *, interrupting: bool, before: str = "") -> None:
    """Wait until a shell answers on the line.

    Args:
        line: The console; what it says is left for `expect`, but for our line and its answer.
        deadline: Until when.
        interrupting: Whether a command of an earlier client may be in the foreground, to be ended first.
        before: A command that the shell runs before it answers; it may be run more than once.

    Raises:
        VmError: somebody reads it who will not let a shell come.
        GuestDiedError: the guest died.
        DeadlineError: no shell answered.
    """
    unread = line.take()
    heard = b""
    question = _Question(interrupting=interrupting, before=before)
    watch = _Watch(line)
    try:
        while (answer := question.answer(heard)) is None:
            # What a client of ours left is no stranger: it needs no look.
            if watch.quiet() >= max(question.patience, 0.0 if interrupting else QUIET[watch.seen]):
                if watch.seen in HINTS:
                    raise VmError(
                        f"wanted {WANTED}, found {watch.seen.value}",
                        hint=HINTS[watch.seen],
                        detail=line.tail(5),
                    )
                question.ask(line)
                watch.restart()
            heard += line.receive(min(STEP, _left(line, deadline)), WANTED)
        heard = question.taken_out(heard[:answer]) + heard[answer:]
    finally:
        line.put_back(unread + heard)


def _left(line: Line, deadline: Deadline) -> float:
    if deadline.passed:
        raise deadline.error(
            WANTED, hint="is the guest stopped by a debugger, or does it still boot?", detail=line.tail(5)
        )
    return deadline.left(WANTED)


class _Watch:
    """What the log shows, and for how long: what is said while we connect is nowhere else."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._text = line.logged(KEPT)
        self.seen = look(self._text)
        # A prompt that stands there as we come is one at once.
        self._since = -math.inf if self.seen is Look.PROMPT else time.monotonic()

    def quiet(self) -> float:
        """Return for how many seconds the console has looked as `seen` says."""
        text = self._line.logged(KEPT)
        if text != self._text:
            self._text = text
            self.seen = look(text)
            self.restart()
        return time.monotonic() - self._since

    def restart(self) -> None:
        """Count from now."""
        self._since = time.monotonic()


class _Question:
    """A line that only a shell at its prompt answers, typed until it does.

    Args:
        interrupting: Whether a ^C goes before it, by itself: what follows at once, a shell drops.
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

    def ask(self, line: Line) -> None:
        if self._interrupting and not self._interrupted:
            line.send(framing.INTERRUPT)
            self._interrupted, self.patience = True, INTERRUPT_PATIENCE
            return
        self._interrupted = False
        self._asked += 1
        words = framing.question(self._token, self._asked, agents=self._interrupting, before=self._before)
        line.send(words)
        self.patience = self._patience
        self._patience = min(2 * self._patience, LAST_PATIENCE)

    def answer(self, heard: bytes) -> int | None:
        """Return where the answer to the last asking ends."""
        wanted = framing.answer(self._token, self._asked)
        at = heard.find(wanted)
        return None if at < 0 else at + len(wanted)

    def taken_out(self, heard: bytes) -> bytes:
        """Return what was heard without our lines and their answers, kernel messages among them kept."""
        ours = self._token.encode()
        return b"".join(_messages(line) if ours in line else line for line in heard.splitlines(keepends=True))


def _messages(line: bytes) -> bytes:
    denoiser = Denoiser()
    denoiser.feed(line)
    return b"".join(denoiser.noise)
