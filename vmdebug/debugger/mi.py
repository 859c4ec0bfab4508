"""GDB/MI lines as frozen records; the only module that uses pygdbmi.

See "GDB/MI Output Syntax" in the GDB manual. A line is parsed in two steps: `read` finds out what it is,
which is cheap and all that is needed to pass it on; `payload` and `text` parse the rest, for the receiver.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgspec
from pygdbmi.gdbmiparser import parse_response

from vmdebug.errors import GdbError

RESULT, EXEC, NOTIFY = "^", "*", "="
CONSOLE, TARGET, LOG = "~", "@", "&"


class Record(msgspec.Struct, frozen=True):
    """One line of GDB.

    Args:
        sigil: Its kind: `RESULT`, `EXEC`, `NOTIFY`, `CONSOLE`, `TARGET`, `LOG`.
        token: Number of the command that it answers; 0 for none.
        name: Result class or async class: "done", "stopped"; "" for a stream.
        line: The whole line, without the newline.
    """

    sigil: str
    token: int
    name: str
    line: str

    def payload(self) -> dict[str, Any]:
        """Return the values of a result or async record: strings, lists and dicts.

        Raises:
            GdbError: the line does not follow MI's grammar.
        """
        start = self.line.find(",")
        if start < 0:
            return {}
        if _PLAIN.fullmatch(self.line, start):
            items = _PLAIN_ITEM.findall(self.line, start)
            plain = dict(items)
            if len(plain) == len(items):  # GDB sometimes repeats a name, of which pygdbmi makes a list
                return plain
        if not _follows_grammar(self.line):
            raise GdbError("GDB wrote a line that is not MI", detail=self.line)
        return _parsed(self.line) or {}

    def text(self) -> str:
        """Return the text of a stream record; a string that is cut or badly escaped is returned unparsed."""
        text = _parsed(self.line)
        return text if isinstance(text, str) else self.line[1:]


PROMPT = b"(gdb) "
"""GDB writes it after each answer and each event; it has no meaning."""

_HEAD = re.compile(r"(\d*)(?:([\^*=])([\w-]+)(?=,|\s*$)|([~@&])(?=\"))")


def read(raw: bytes) -> Record | None:
    """Return the record of a whole line; None for the prompt and for a line that is not MI.

    Args:
        raw: The line, with or without the newline. GDB writes UTF-8 and escapes other bytes; any that it does
            not escape are escaped here.
    """
    line = raw.rstrip(b"\r\n").decode(errors="backslashreplace")
    head = _HEAD.match(line)
    if head is None:
        return None
    token, sigil, name, stream = head.groups()
    return Record(sigil or stream, int(token or 0), name or "", line)


def quote(text: str) -> str:
    """Return `text` as an MI c-string, so that blanks and quotes reach GDB unchanged."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def bare(text: str) -> str:
    """Return `text` for a command that takes its rest unquoted, as those that are made of CLI commands do."""
    return " ".join(text.splitlines())


def plain(text: str) -> str:
    """Return `text` without the colours that GDB 18 puts into errors, also in MI."""
    return _COLOUR.sub("", text)


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# Most answers are one or two plain strings. To parse `value="2"`, pygdbmi takes a fifth of the time of the
# command.
_PLAIN_ITEM = re.compile(r',([\w-]+)="([^"\\]*)"')
_PLAIN = re.compile(rf"(?:{_PLAIN_ITEM.pattern})*")

# pygdbmi loops forever on a record that is cut short, and misreads others, so it gets only lines that follow
# the grammar. To check that, strings become `"`, and each pass removes the innermost brackets until only
# `,name="` is left.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_ITEM = r'(?:[^\s"=,{}\[\]]+=)?"'
_BRACKETS = re.compile(rf"\{{(?:{_ITEM}(?:,{_ITEM})*)?\}}|\[(?:{_ITEM}(?:,{_ITEM})*)?\]")
_FLAT = re.compile(r'\d*[\^*=][\w-]+(?:,[^\s"=,{}\[\]]+=")*\s*')


def _follows_grammar(line: str) -> bool:
    outline, found = _STRING.sub('"', line), 1
    while found:
        outline, found = _BRACKETS.subn('"', outline)
    return _FLAT.fullmatch(outline) is not None


_ESCAPE = re.compile(r"\\(?:([0-3][0-7]{2}|['\"\\abefnrt])|(.?))")


def _parsed(line: str) -> Any:
    """Return pygdbmi's payload; an escape that it refuses is taken literally."""
    with contextlib.suppress(ValueError):
        return _by_pygdbmi(line)
    literal = _ESCAPE.sub(lambda found: found[0] if found[1] else f"\\\\{found[2]}", line)
    with contextlib.suppress(ValueError):
        return _by_pygdbmi(literal)
    return None


def _by_pygdbmi(line: str) -> Any:
    parsed = parse_response(line)
    return None if parsed["type"] == "output" else parsed["payload"]
