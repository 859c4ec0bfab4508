"""Positions in a recording: instruction counts, the guest's time, and lines of its console.

A guest writes its console byte by byte, and QEMU logs each of them, so each line has an exact position. The
agent's serial line is logged in the same way, without a word which line a byte was for. So where the agent
talks, a line's position only lies between two counts, until a replay has shown how much was on the console at
some positions around it: these are its anchors.
"""

from __future__ import annotations

import bisect
import re
from array import array
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vmdebug.recording import files
from vmdebug.recording.event_log import EventLog

_STAMP = re.compile(rb"\[ *(\d+)\.(\d{6})\]")
_CARRIAGE = b"\r"


class Line(msgspec.Struct, frozen=True, array_like=True):
    """A line of the console. It begins with its time stamp: a prompt may have waited there long before.

    Args:
        icount: The instruction count when its first byte has been written; if it is not exact, the earliest.
        latest: The count at the latest; equal to `icount` if that is exact.
        seconds: The guest's time: of its time stamp, or else of the last one before.
        text: The line.
        first: The number of the byte in `EventLog.output` that is at `icount`.
        last: The number of the byte that is at `latest`.
        byte: The number of its first byte in the serial log.
    """

    icount: int
    latest: int
    seconds: float
    text: str
    first: int = 0
    last: int = 0
    byte: int = 0

    @property
    def exact(self) -> bool:
        """Whether its position is known exactly."""
        return self.icount == self.latest


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """A position in a recording.

    Args:
        icount: The number of instructions that have run.
        seconds: The guest's time, by the time stamps of its messages.
        line: The number of lines on the console before it.
        text: The last of these lines.
    """

    icount: int
    seconds: float
    line: int
    text: str = ""

    def describe(self) -> str:
        """Return the position in words."""
        return f"icount {self.icount}, {self.seconds:.6f} s, console line {self.line}"


def read(directory: Path, log: EventLog) -> tuple[Line, ...]:
    """Return the lines of a recording's console, with their positions."""
    return of_lines(files.console(directory).read_bytes(), log.output)


def of_lines(console: bytes, output: array[int], anchors: Sequence[tuple[int, int]] = ()) -> tuple[Line, ...]:
    """Return the lines of a console.

    Args:
        console: The serial log.
        output: The positions of all single bytes that the guest wrote, to the console or to another line.
        anchors: Positions, in order, each with the size of the console there.
    """
    sizes, others = [0], [0]
    for icount, size in anchors:
        sizes.append(size)
        # At the position of a byte the guest has written it.
        others.append(bisect.bisect_right(output, icount) - size)
    sizes.append(len(console) + 1)
    others.append(len(output) - len(console))
    lines: list[Line] = []
    seconds, at = 0.0, 0
    for raw in console.split(b"\n"):
        if at < len(console):
            byte = at
            if stamp := _STAMP.search(raw):
                seconds = int(stamp[1]) + int(stamp[2]) / 1e6
                byte += stamp.start()
            after = bisect.bisect_right(sizes, byte)
            numbers = (byte + others[number] for number in (after - 1, after))
            first, last = (max(0, min(each, len(output) - 1)) for each in numbers)
            text = raw.strip(_CARRIAGE).decode(errors="replace")
            lines.append(Line(output[first], output[last], seconds, text, first, last, byte))
        at += len(raw) + 1
    return tuple(lines)


def at(lines: Sequence[Line], icount: int) -> Position:
    """Return the position at an instruction count."""
    number = bisect.bisect_left(lines, icount, key=lambda line: line.latest)
    before = lines[number - 1] if number else None
    after = lines[number] if number < len(lines) else None
    seconds = before.seconds if before is not None else 0.0
    if before is not None and after is not None and after.icount > before.icount:
        part = min(1.0, (icount - before.icount) / (after.icount - before.icount))
        seconds += part * max(0.0, after.seconds - before.seconds)
    return Position(icount=icount, seconds=seconds, line=number, text=before.text if before else "")
