"""The words of errors for an agent: its tools in place of commands and calls of the Python API."""

from __future__ import annotations

import json
import re

from vmdebug.spelling import Value

PHRASES = (
    (
        r"vmdebug attach \S+ --batch; in a script: session\.gdb\.cont\(wait=False\)",
        "`continue` with wait=false",
    ),
    (r"(?:session\.)?gdb\.cont\(wait=False\)", "`continue` with wait=false"),
    (r"\bcont\(\) sets it running, cont\(wait=False\) without waiting", "`continue` sets it running"),
    (
        r"\binterrupt\(\) stops it, wait_stop\(\) waits until it stops",
        "`interrupt` stops it, `continue` waits",
    ),
    (r"\binterrupt\(\) stops it", "`interrupt` stops it, `continue` waits again"),
    (r"\bgdb\.wait_stop\(\) returns that stop", "`continue` returns that stop"),
    (r"; frame\.evaluate\(\) takes any expression", ""),
    (r"\bconnect\(\) attaches GDB to it", "`attach` attaches GDB to it"),
    (r"\b(pending|hardware)=True", r"\1=true"),
    (
        r"continue or quit the GDB that is attached; if none is: vmdebug attach \S+ --batch",
        "`continue`, or `detach`",
    ),
    (r"start one: vmdebug start\b", "start one: `start`"),
    (r"`?vmdebug (log|dmesg) [\w.-]+`?", r"`\1`"),
    (r"vmdebug restart [\w.-]+", "`stop`, then `start`"),
    (r"vmdebug snapshot save \S+ (\S+)", r"`snapshot` with tag \1"),
    (r", or delete that one: vmdebug snapshot delete \S+ \S+", ""),
)
"""Phrases of vmdebug's errors, as regular expressions, and what they are for an agent."""

_PHRASES = tuple((re.compile(found), given) for found, given in PHRASES)


def for_agents(text: str) -> str:
    """Return an error's text with the names of the tools."""
    for found, given in _PHRASES:
        text = found.sub(given, text)
    return text


def option(name: str, value: Value = None) -> str:
    """Spell an option of a guest as an argument of a tool: `kaslr=true`."""
    return name if value is None else f"{name}={json.dumps(value)}"
