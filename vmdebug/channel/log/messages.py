"""Kernel messages in what a console says, taken out; pure text.

They land between any two bytes of what programs write, but come whole, from their time
stamp to their newline: the serial port's lock is held for a record, see
serial8250_console_write in drivers/tty/serial/8250/8250_port.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NOISE = re.compile(
    rb"(?:<\d{1,3}>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? [^\n]*\n"
    rb"|\*\* \d+ printk messages dropped \*\*[^\n]*\n"
)
_PERHAPS = re.compile(rb"[<[*]")

_LONGEST = 2048
"""Bytes of the longest kernel line with its prefix; twice LOG_LINE_MAX."""


@dataclass(slots=True)
class Denoiser:
    """Takes kernel messages out of a stream, wherever they land in it.

    `print_prefix` of kernel/printk/printk.c writes what starts them. None of its
    characters is in an answer, so an answer never waits for more to come.

    Args:
        noise: The messages taken out so far, whole lines.
        held: What may be the start of one.
    """

    noise: list[bytes] = field(default_factory=list)
    held: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """Return what of the stream is no kernel message; the start of a possible one is held back."""
        text, self.held = self.held + data, b""
        clean = []
        at = 0
        while perhaps := _PERHAPS.search(text, at):
            clean.append(text[at : perhaps.start()])
            at = perhaps.start()
            if whole := _NOISE.match(text, at):
                self.noise.append(whole.group())
                at = whole.end()
            elif text.find(b"\n", at) < 0 and len(text) - at < _LONGEST:
                self.held = text[at:]
                return b"".join(clean)
            else:
                clean.append(text[at : at + 1])
                at += 1
        clean.append(text[at:])
        return b"".join(clean)


# A line editor may show only the end of the line that starts an agent, and a log's end may
# start in the middle of a conversation.
_OURS = re.compile(
    rb"\A(?:(?!_[0-9a-f]{10}:r\.).)*?_[0-9a-f]{10}:z\.\r?\n"
    rb"|^(?:[^\n]*sh -c '_[^\n]*\n)?[^\n]*_(?P<run>[0-9a-f]{10}):r\..*?(?:_(?P=run):z\.\r?\n|\Z)"
    rb"|^[^\n]*sh -c '_a=[0-9a-f]{10};[^\n]*(?:\n|\Z)"
    rb"|^[^\n]*_[0-9a-f]{10}(?:\"\":\}?|:)\d+\.\r?\n",
    re.DOTALL | re.MULTILINE,
)


def readable(log: bytes) -> bytes:
    """Return a console's log without what we said and were answered; kernel messages among it stay."""
    return _OURS.sub(_noise_of, log)


def _noise_of(match: re.Match[bytes]) -> bytes:
    denoiser = Denoiser()
    denoiser.feed(match.group())
    return b"".join(denoiser.noise)
