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
from typing import TYPE_CHECKING

from vmdebug.channel.log.messages import Denoiser
from vmdebug.channel.serial import framing
from vmdebug.errors import VmError

if TYPE_CHECKING:  # the console calls us
    from vmdebug.channel.serial.console import Console
    from vmdebug.deadline import Deadline

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
    """Who seems to read the console."""

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


def wait(console: Console, deadline: Deadline, *, before: str = "") -> None:
    """Wait until a shell answers on the console.

    Args:
        console: Where; what it says is left for `expect`, but for our line and its answer.
        deadline: Until when.
        before: A command that the shell runs before it answers; it may be run more than once.

    Raises:
        VmError: somebody reads it who will not let a shell come.
        GuestDiedError: the guest died.
        DeadlineError: no shell answered.
    """
    unread = console.take()
    heard = b""
    question = _Question(interrupting=console.interrupted, before=before)
    watch = _Watch(console)
    try:
        while (answer := question.answer(heard)) is None:
            # What a client of ours left is no stranger: it needs no look.
            if watch.quiet() >= max(question.patience, 0.0 if console.interrupted else QUIET[watch.seen]):
                if watch.seen in HINTS:
                    raise VmError(
                        f"wanted {WANTED}, found {watch.seen.value}",
                        hint=HINTS[watch.seen],
                        detail=console.tail(5),
                    )
                question.ask(console)
                watch.restart()
            heard += console.receive(min(STEP, _left(console, deadline)), WANTED)
        heard = question.taken_out(heard[:answer]) + heard[answer:]
    finally:
        console.put_back(unread + heard)
    console.ready, console.interrupted = True, False


def _left(console: Console, deadline: Deadline) -> float:
    if deadline.passed:
        raise deadline.error(
            WANTED, hint="is the guest stopped by a debugger, or does it still boot?", detail=console.tail(5)
        )
    return deadline.left(WANTED)


class _Watch:
    """What the log shows, and for how long: what is said while we connect is nowhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = console.logged(KEPT)
        self.seen = look(self._text)
        # A prompt that stands there as we come is one at once.
        self._since = -math.inf if self.seen is Look.PROMPT else time.monotonic()

    def quiet(self) -> float:
        """Return for how many seconds the console has looked as `seen` says."""
        text = self._console.logged(KEPT)
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

    def ask(self, console: Console) -> None:
        if self._interrupting and not self._interrupted:
            console.send(framing.INTERRUPT)
            self._interrupted, self.patience = True, INTERRUPT_PATIENCE
            return
        self._interrupted = False
        self._asked += 1
        words = framing.question(self._token, self._asked, agents=self._interrupting, before=self._before)
        console.send(words)
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
