"""Positions in a replay for people: where the guest is, and the way to another place.

The console's lines and their positions are in the replay's run directory; see `vmdebug/replaying.py`.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import re
from collections.abc import Callable
from typing import NamedTuple

import gdb
import vmd_history
import vmd_waker
import vmd_writes

_COUNT = re.compile(r"(\d+)([kKmM]?)")
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000}
_TIME = re.compile(r"(\d+(?:\.\d+)?)s")

_bookmarks: dict[str, int] = {}


class _Line(NamedTuple):
    icount: int
    latest: int
    seconds: float
    text: str


class When(gdb.Command):
    """Print the position in a replay: vmd-when.

    The count of instructions, the time by the kernel's messages, and the last line on the console.

    Example: vmd-when
    """

    NAME = "vmd-when"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_STATUS)

    def invoke(self, _argument: str, _from_tty: bool) -> None:
        """Print it."""
        print(describe(vmd_history.position()))
        for name, place in sorted(_bookmarks.items(), key=lambda each: each[1]):
            print(f"bookmark {name}: {describe(place)}")


class Goto(gdb.Command):
    """Go to a position of a replay, forward or back: vmd-goto POSITION.

    POSITION is a count of instructions (3M is 3000000), +N or -N from here, start, end, failure,
    a time such as 2.5s, a bookmark, or a text on the console.

    Example: vmd-goto Run /init
    """

    NAME = "vmd-goto"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Go there."""
        vmd_writes.need_replay()
        if not argument.strip():
            vmd_writes.fail_usage(self.NAME, "vmd-goto POSITION")
        vmd_history.goto(_wanted(argument.strip()))
        print(describe(vmd_history.position()))
        gdb.execute("frame")


class Bookmark(gdb.Command):
    """Name the present position of a replay, for vmd-goto: vmd-bookmark NAME.

    Example: vmd-bookmark before-the-free
    """

    NAME = "vmd-bookmark"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_STATUS)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Name it."""
        name = argument.strip()
        if not name or " " in name or name[0].isdigit():
            vmd_writes.fail_usage(self.NAME, "vmd-bookmark NAME")
        _bookmarks[name] = vmd_history.position()


def describe(position: int) -> str:
    """Return a position in words."""
    lines = _lines()
    number = bisect.bisect_left([line.latest for line in lines], position)
    if not number:
        return f"instruction {position}, before the first line of the console"
    before = lines[number - 1]
    return f"instruction {position}, {before.seconds:.6f} s, console line {number}: {before.text}"


def prompt() -> None:
    """Show the position in GDB's prompt, unless the user has another one than GDB's own."""
    if gdb.prompt_hook is None and gdb.parameter("prompt") == "(gdb) ":
        gdb.prompt_hook = _prompt


def _prompt(current: str) -> str | None:
    with contextlib.suppress(gdb.error, gdb.GdbError):
        return f"(gdb {vmd_history.position()}) "
    return current


def _wanted(words: str) -> int:
    """Return the count of instructions that the user means.

    Raises:
        gdb.GdbError: there is no such position.
    """
    facts = vmd_history.facts()
    named: dict[str, Callable[[], int]] = {
        "start": vmd_history.begin,
        "end": lambda: int(str(facts["end"])),
        "failure": lambda: int(str(facts["end"] if facts.get("failure") is None else facts["failure"])),
    }
    if words in named:
        return named[words]()
    if words in _bookmarks:
        return _bookmarks[words]
    if count := _COUNT.fullmatch(words.lstrip("+-")):
        distance = int(count[1]) * _SCALE[count[2].lower()]
        signs = {"+": 1, "-": -1}
        return vmd_history.position() + signs[words[0]] * distance if words[0] in signs else distance
    lines = _lines()
    if time := _TIME.fullmatch(words):
        found = next((line.icount for line in lines if line.seconds >= float(time[1])), None)
    else:
        found = next((line.icount for line in lines if words in line.text), None)
    if found is None:
        raise gdb.GdbError(f"the recording has no position {words!r}; `help vmd-goto` lists their forms")
    return found


def _lines() -> list[_Line]:
    with contextlib.suppress(OSError, ValueError):
        rows = json.loads((vmd_waker.directory() / "lines.json").read_bytes())
        return [_Line(*row[:4]) for row in rows]
    return []
