"""GDB/MI lines as frozen records; the only module that knows pygdbmi.

Rests on "GDB/MI Output Syntax" in the GDB manual. A line is looked at twice: `read`
says what it is, which is cheap and is all that routing needs; `payload` and `text`
read what it carries, once, by whoever wants it.
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
    """One line of GDB's.

    Args:
        sigil: Which kind it is: `RESULT`, `EXEC`, `NOTIFY`, `CONSOLE`, `TARGET`, `LOG`.
        token: Number of the command it answers; 0 where it answers none.
        name: Result class or async class: "done", "stopped"; "" for a stream.
        line: The whole line, without its end.
    """

    sigil: str
    token: int
    name: str
    line: str

    def payload(self) -> dict[str, Any]:
        """Return what a result or async record carries: strings, lists and dicts.

        Raises:
            GdbError: the line does not follow MI's grammar.
        """
        start = self.line.find(",")
        if start < 0:
            return {}
        if _PLAIN.fullmatch(self.line, start):
            items = _PLAIN_ITEM.findall(self.line, start)
            plain = dict(items)
            if len(plain) == len(items):  # GDB repeats a name here and there; pygdbmi makes a list of those
                return plain
        if not _follows_grammar(self.line):
            raise GdbError("GDB wrote a line that is not MI", detail=self.line)
        return _parsed(self.line) or {}

    def text(self) -> str:
        """Return what a stream record says; a string that is cut or badly escaped comes as it is."""
        text = _parsed(self.line)
        return text if isinstance(text, str) else self.line[1:]


PROMPT = b"(gdb) "
"""What GDB writes after each answer and each event; it carries nothing."""

_HEAD = re.compile(r"(\d*)(?:([\^*=])([\w-]+)(?=,|\s*$)|([~@&])(?=\"))")


def read(raw: bytes) -> Record | None:
    """Return the record that a whole line is; None for the prompt and for what isn't MI.

    Args:
        raw: The line, with or without its end. GDB writes UTF-8, and its own escapes
            for bytes that aren't; what slips through comes escaped.
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
    """Return `text` for a command that takes all of its line as it is, as those made of CLI commands do."""
    return " ".join(text.splitlines())


def plain(text: str) -> str:
    """Return `text` without the colours that GDB 18 gives to names in its errors, in MI as well."""
    return _COLOUR.sub("", text)


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# Most answers are one or two plain strings. Read by pygdbmi, `value="2"` alone takes a
# fifth of what the command costs in all.
_PLAIN_ITEM = re.compile(r',([\w-]+)="([^"\\]*)"')
_PLAIN = re.compile(rf"(?:{_PLAIN_ITEM.pattern})*")

# pygdbmi runs for ever on a record that is cut short, and guesses at others, so only
# lines that follow the grammar reach it: strings become `"`, then each pass takes
# the innermost brackets away, until nothing but `,name="` is left.
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
    """Return pygdbmi's payload; where it refuses an escape, that escape is taken literally."""
    with contextlib.suppress(ValueError):
        return _by_pygdbmi(line)
    literal = _ESCAPE.sub(lambda found: found[0] if found[1] else f"\\\\{found[2]}", line)
    with contextlib.suppress(ValueError):
        return _by_pygdbmi(literal)
    return None


def _by_pygdbmi(line: str) -> Any:
    parsed = parse_response(line)
    return None if parsed["type"] == "output" else parsed["payload"]
