"""C source as coverage.py shows it: its functions, and its words by kind for the colours of the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"(\w+)\s*\(([^()]*)")
_DEFINING = re.compile(r"[A-Z][A-Z0-9_]*$")
"""A macro that defines a function: SYSCALL_DEFINE3(read, …)."""

_LONGEST_HEAD = 12
"""How many lines the head of a function has at most, before the line with its {."""


class Function(NamedTuple):
    """A function of a source file: from the first line of its head to its }."""

    name: str
    first: int
    last: int


def functions(text: str) -> Iterator[Function]:
    """Yield the functions of C source in the kernel's style, where { and } are in the first column."""
    lines = text.splitlines()
    begins = 0
    for number, line in enumerate(lines, 1):
        if line.startswith("{") and not begins:
            begins = number
        elif line.startswith("}") and begins:
            head = _head(lines, begins)
            if head is not None and not line.rstrip().endswith(("};", ",")):
                yield Function(head[0], head[1], number)
            begins = 0


def _head(lines: list[str], begins: int) -> tuple[str, int] | None:
    """Return the name of the function whose { is in a line, and its first line; None if it is none."""
    first = begins - 1
    while first > max(0, begins - _LONGEST_HEAD) and _goes_on(lines[first - 1]):
        first -= 1
    words = " ".join(lines[first : begins - 1])
    heads = [each for each in _HEAD.finditer(words) if not each[1].startswith("__attribute")]
    if not heads:
        return None
    name = heads[0][1]
    if _DEFINING.match(name):
        name = f"{name}({heads[0][2].split(',')[0].strip()})"
    return name, first + 1


def _goes_on(line: str) -> bool:
    """Whether a line may be in the head of a function that begins later."""
    return bool(line.strip()) and line[0] not in "}#/*" and not line.rstrip().endswith((";", "*/"))


def tokens(text: str) -> Iterator[list[tuple[str, str]]]:
    """Yield the words of each line with their kinds, as `FileReporter.source_token_lines` does."""
    from pygments import lex  # noqa: PLC0415 - slow to import, and only pages need it
    from pygments.lexers.c_cpp import CLexer  # noqa: PLC0415 - as above

    line: list[tuple[str, str]] = []
    for kind, words in lex(text, CLexer(stripnl=False, ensurenl=False)):
        for number, part in enumerate(words.expandtabs(8).split("\n")):
            if number:
                yield line
                line = []
            if part:
                line.append((_kind(str(kind), part), part))
    if line:
        yield line


def _kind(kind: str, words: str) -> str:
    for begin, name in _KINDS:
        if kind.startswith(begin):
            return name
    return "ws" if words.isspace() else "txt"


_KINDS = (
    ("Token.Comment", "com"),
    ("Token.Keyword", "key"),
    ("Token.Literal.Number", "num"),
    ("Token.Literal.String", "str"),
    ("Token.Operator", "op"),
    ("Token.Punctuation", "op"),
    ("Token.Name", "nam"),
)
"""Pygments' kinds by their first words, and coverage.py's names for them."""
