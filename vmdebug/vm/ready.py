"""Waiting for a shell on the console, of a guest that boots or has long been up.

Only an answer proves a shell: its prompt may be any, may be long in the past,
and may be buried under kernel messages. So a line is typed that a shell answers,
as soon as the text looks like a prompt, or when all has been quiet for a while.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

from vmdebug.errors import VmError
from vmdebug.vm import framing

if TYPE_CHECKING:  # the console calls us
    from vmdebug.deadline import Deadline
    from vmdebug.vm.console import Console

KEPT = 8192
"""Bytes at the end of a console's text that are looked at."""

WANTED = "a shell on the guest's console"

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
    (Look.LOGIN, re.compile(rb"(?:^|[\s\x00])(?:login|[Pp]assword): *$")),
    # systemd's sulogin-shell
    (
        Look.EMERGENCY,
        re.compile(rb"(?:Give root password|Press Enter) for [^\n]*maintenance[^\n]*$"),
    ),
    # nixos/modules/system/boot/stage-1-init.sh
    (Look.STAGE_1, re.compile(rb"An error occurred in stage 1 of the boot process[^$#]*\Z")),
    # Ends of prompts: also the last bytes of a UTF-8 arrow and angle quote.
    (Look.PROMPT, re.compile(rb"(?:[#$%>]|\xe2\x9d\xaf|\xc2\xbb) *$")),
)


def look(text: bytes) -> Look:
    """Return who reads a console, by the end of what it has shown.

    Escape sequences and kernel messages are passed over.
    """
    denoiser = framing.Denoiser()
    # What is held back at the end may be a prompt: "[root@nixos:~]# ".
    plain = denoiser.feed(text[-KEPT:]) + denoiser.held
    seen = _ESCAPES.sub(b"", plain).replace(b"\r", b"")
    last = seen.rpartition(b"\n")[2]
    for kind, pattern in _LOOKS:
        if pattern.search(seen if kind is Look.STAGE_1 else last):
            return kind
    return Look.OTHER


def wait(console: Console, deadline: Deadline) -> None:
    """Wait until a shell answers on the console.

    Args:
        console: Where; what it says is left for `expect`, but for our line and its answer.
        deadline: Until when.

    Raises:
        VmError: somebody reads it who will not let a shell come.
        GuestDiedError: the guest died.
        DeadlineError: no shell answered.
    """
    unread = console.take()
    before = console.logged(KEPT)
    heard = b""
    question = _Question(interrupting=console.interrupted)
    try:
        while (answer := question.answer(heard)) is None:
            seen = look(before + heard)
            believed = 0.0 if not heard and seen is Look.PROMPT else QUIET[seen]
            quiet = max(believed, question.patience if question.asked else 0.0)
            data = console.receive(min(quiet, _left(console, deadline)), WANTED)
            heard += data
            if not data and seen in HINTS:
                raise VmError(
                    f"wanted {WANTED}, found {seen.value}", hint=HINTS[seen], detail=console.tail(5)
                )
            if not data:
                question.ask(console, at=len(heard))
        heard = heard[: question.at] + heard[answer:]
    finally:
        console.put_back(unread + heard)
    console.ready, console.interrupted = True, False


def _left(console: Console, deadline: Deadline) -> float:
    if deadline.passed:
        raise deadline.error(
            WANTED, hint="is the guest stopped by a debugger, or does it still boot?", detail=console.tail(5)
        )
    return deadline.left(WANTED)


class _Question:
    """A line that only a shell at its prompt answers, typed until it does."""

    def __init__(self, *, interrupting: bool) -> None:
        self._token = framing.token()
        self._interrupting = interrupting
        self.asked = 0
        self.at = 0
        self.patience = FIRST_PATIENCE

    def ask(self, console: Console, *, at: int) -> None:
        if not self.asked:
            self.at = at
        else:
            self.patience = min(2 * self.patience, LAST_PATIENCE)
        self.asked += 1
        if self._interrupting:
            console.send(framing.INTERRUPT)
        console.send(framing.question(self._token, self.asked, agents=self._interrupting))

    def answer(self, heard: bytes) -> int | None:
        """Return where the answer to the last asking ends."""
        wanted = framing.answer(self._token, self.asked)
        at = heard.find(wanted)
        return None if at < 0 else at + len(wanted)
