"""Filters kernel messages out of a console's output; pure text.

A kernel message may start between any two bytes of a program's output, but its own bytes stay together, from
the time stamp to the newline: the kernel holds the serial port's lock for a whole record, see
serial8250_console_write in drivers/tty/serial/8250/8250_port.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vmdebug import process

_MESSAGE = re.compile(
    rb"(?:<\d{1,3}>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? [^\n]*\n"
    rb"|\*\* \d+ printk messages dropped \*\*[^\n]*\n"
)
_POSSIBLE_START = re.compile(rb"[<[*]")

_LONGEST = 2048
"""Bytes of the longest kernel line with its prefix; twice LOG_LINE_MAX."""


@dataclass(slots=True)
class MessageFilter:
    """Filters kernel messages out of a stream.

    `print_prefix` of kernel/printk/printk.c writes the start of a message. None of its characters
    occurs in an answer of the shell, so the filter never holds an answer back.

    Args:
        messages: The messages filtered out so far, as whole lines.
        held: Bytes held back, because they may start a message.
    """

    messages: list[bytes] = field(default_factory=list)
    held: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """Return the stream without kernel messages; hold back a possible start of one."""
        text, self.held = self.held + data, b""
        clean = []
        at = 0
        while start := _POSSIBLE_START.search(text, at):
            clean.append(text[at : start.start()])
            at = start.start()
            if whole := _MESSAGE.match(text, at):
                self.messages.append(whole.group())
                at = whole.end()
            elif text.find(b"\n", at) < 0 and len(text) - at < _LONGEST:
                self.held = text[at:]
                return b"".join(clean)
            else:
                clean.append(text[at : at + 1])
                at += 1
        clean.append(text[at:])
        return b"".join(clean)


# A line editor may show only the end of the line that starts the helper shell, and the end of a log may
# start within an exchange.
_EXCHANGE = re.compile(
    rb"\A(?:(?!_[0-9a-f]{10}:r\.).)*?_[0-9a-f]{10}:z\.\r?\n"
    rb"|^(?:[^\n]*sh -c '_[^\n]*\n)?[^\n]*_(?P<run>[0-9a-f]{10}):r\..*?(?:_(?P=run):z\.\r?\n|\Z)"
    rb"|^[^\n]*sh -c '_a=[0-9a-f]{10};[^\n]*(?:\n|\Z)"
    rb"|^[^\n]*_[0-9a-f]{10}\\?:\}?\d+\.\r?\n",
    re.DOTALL | re.MULTILINE,
)


_HAS_EXCHANGE = re.compile(rb"_(?:a=)?[0-9a-f]{10}")
"""In every exchange; most logs have none, and looking for whole ones in 16 MiB takes seconds."""


def readable(log: bytes) -> bytes:
    """Return a console's log without the exchanges of `exec`; kernel messages between them stay."""
    if _HAS_EXCHANGE.search(log) is None:
        return log
    return _EXCHANGE.sub(_messages_in, log)


_LINE_END = re.compile(rb"\r+\n")
"""A program that writes a return itself, as systemd does, gets a second one from the terminal."""


def tail(log: bytes, lines: int) -> str:
    """Return the last lines of a console's log as text, without the exchanges of `exec`."""
    return process.tail(_LINE_END.sub(b"\n", readable(log)).decode(errors="replace"), lines)


def _messages_in(match: re.Match[bytes]) -> bytes:
    found = MessageFilter()
    found.feed(match.group())
    return b"".join(found.messages)
