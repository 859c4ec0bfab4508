"""Reads KTAP into a tree of test points.

tap.py reads each line: results, numbers, plans, SKIP. The nesting is KTAP's own, which no TAP library knows:
a test's points are printed before its result, indented deeper. The kernel's kunit_parser.py is not used,
because it drops numbers, reasons and XFAIL, takes what a kselftest prints for text, prints while it reads,
and has another interface in each release.

The input is what real kernels print: plans may be missing, other text may stand between any two lines,
several documents may follow each other, and a crash ends the output anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
from tap.line import Plan, Result
from tap.parser import Parser

from vmdebug.ktests.results import KernelTestPoint, Status

_VERSION = re.compile(r"^K?TAP version \d+$")
_SUBTEST = re.compile(r"^# Subtest: (?P<name>.*)$")
_STAMP = re.compile(r"^(?:<\d+>)?\[ *(?P<seconds>\d+\.\d+)\](?:\[ *[TC]\d+\])? ?")
_RESULT = re.compile(r"^(?:not )?ok +\d+\b")
"""tap.py takes any line that begins with "ok" for a result: "okay", "ok2go"."""

_TAB = 8

_PARSER = Parser()


@dataclass(slots=True)
class _Level:
    """The points of one indentation that no result above them has taken yet."""

    indent: int
    opened: float | None = None
    clock: float | None = None
    name: str = ""
    planned: int | None = None
    since: int = 0
    skip: str = ""
    points: list[KernelTestPoint] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def begin(self, time: float | None) -> None:
        """Begin another document at the same indentation."""
        self._end()
        self.planned, self.since, self.name, self.clock = None, len(self.points), "", time

    def closed(self, *, judged: bool = False) -> tuple[KernelTestPoint, ...]:
        """Return all points.

        Args:
            judged: Whether the test's own result counts; then points that its plan lacks are no failure.
        """
        if not judged:
            self._end()
        return tuple(self.points)

    def lacks(self) -> int:
        """Return how many points of the plan have no result."""
        return max(0, (self.planned or 0) - (len(self.points) - self.since))

    def _end(self) -> None:
        """Add a point for those that the plan has, and that did not come."""
        if not (lacking := self.lacks()):
            return
        number = len(self.points) - self.since + 1
        many = f"{number} to {self.planned}" if lacking > 1 else f"{number}"
        name, said = f"point {many} of {self.planned}", tuple(self.said)
        self.said.clear()
        missing = KernelTestPoint(name=name, status="missing", number=number, diagnostics=said)
        self.points.append(missing)


class Reader:
    """Reads KTAP line by line."""

    def __init__(self) -> None:
        self._levels = [_Level(0)]

    def line(self, text: str, *, time: float | None = None) -> KernelTestPoint | None:
        """Read a line, and return the point of the first level that it ends; None if it ends none.

        Args:
            text: The line.
            time: Its time stamp in the kernel's log.
        """
        expanded = text.expandtabs(_TAB).rstrip()
        bare = expanded.lstrip()
        indent = len(expanded) - len(bare)
        if _VERSION.match(bare):
            self._at(indent, time).begin(time)
            return None
        if subtest := _SUBTEST.match(bare):
            self._at(indent, time).name = subtest["name"]
            return None
        parsed = _PARSER.parse_line(bare)
        if isinstance(parsed, Plan):
            level = self._at(indent, time)
            level.planned, level.skip = parsed.expected_tests, parsed.directive.text
        elif isinstance(parsed, Result) and _RESULT.match(bare):
            point = self._point(indent, parsed, time)
            return point if indent == self._levels[0].indent else None
        elif bare:
            self._levels[-1].said.append(bare.removeprefix("#").removeprefix(" "))
        return None

    def points(self, *, judged: bool = False) -> tuple[KernelTestPoint, ...]:
        """Return the points of the first level; the input has ended.

        Args:
            judged: See `_Level.closed`.
        """
        while len(self._levels) > 1:
            self._cut()
        return self._levels[0].closed(judged=judged)

    @property
    def rest(self) -> tuple[str, ...]:
        """The lines after the last result."""
        return tuple(self._levels[0].said)

    @property
    def skip(self) -> str:
        """The directive of the first level's plan: "SKIP needs root"."""
        return self._levels[0].skip

    def _at(self, indent: int, time: float | None) -> _Level:
        """Return the level of an indentation; deeper ones end without the result of their test."""
        while self._levels[-1].indent > indent and len(self._levels) > 1:
            self._cut()
        if self._levels[-1].indent < indent:
            self._levels.append(_Level(indent, time, time))
        return self._levels[-1]

    def _cut(self) -> None:
        """End the deepest level, whose test has no result."""
        level = self._levels.pop()
        points, above = level.closed(), self._levels[-1]
        if points:
            name = level.name or "a test without a result"
            said = (*above.said, *level.said)
            above.said.clear()
            above.points.append(KernelTestPoint(name=name, status="missing", points=points, diagnostics=said))
        else:
            above.said += level.said

    def _point(self, indent: int, result: Result, time: float | None) -> KernelTestPoint:
        while len(self._levels) > 2 and self._levels[-2].indent > indent:  # noqa: PLR2004 - the two deepest
            self._cut()
        inner = self._levels.pop() if len(self._levels) > 1 and self._levels[-1].indent > indent else None
        level = self._at(indent, time)
        began = level.clock if inner is None else inner.opened
        said = level.said
        points: tuple[KernelTestPoint, ...] = ()
        if inner is not None:
            lacking = inner.lacks() if result.ok else 0
            points = inner.closed(judged=result.ok)
            said = [*said, *inner.said]
            said += [f"its plan has {lacking} more points, which did not come"] if lacking else []
        point = _made(result, said, points, inner.skip if inner else "")
        took = round(time - began, 6) if time is not None and began is not None else None
        point = msgspec.structs.replace(point, ended=time, duration=took)
        level.said, level.clock = [], time
        level.points.append(point)
        return point


def _made(
    result: Result, said: Iterable[str], points: tuple[KernelTestPoint, ...], skip: str
) -> KernelTestPoint:
    directive = result.directive.text.strip()
    name = result.description.removeprefix("-").strip()
    if not name:  # "ok 3 # SKIP name", as kselftest.h prints it
        directive, _, name = directive.partition(" ")
        name = name.strip() or f"test {result.number}"
    if skip and not points and not directive:
        directive = skip
    return KernelTestPoint(
        name=name,
        status=_status(ok=result.ok, directive=directive),
        number=result.number or 0,
        directive=directive,
        diagnostics=tuple(said),
        points=points,
    )


def _status(*, ok: bool, directive: str) -> Status:
    word = directive.partition(" ")[0].upper()
    if word.startswith("SKIP"):
        return "skipped"
    if word in ("XFAIL", "TODO"):
        return "xfailed"
    return "passed" if ok else "failed"


def read(lines: Iterable[str]) -> tuple[KernelTestPoint, ...]:
    """Return the points of the first level of a document."""
    reader = Reader()
    for line in lines:
        reader.line(line)
    return reader.points()


def read_log(text: str) -> tuple[KernelTestPoint, ...]:
    """Return the points of all documents in the kernel's log, with their time stamps and durations.

    Args:
        text: The log, as dmesg(1) or the console prints it.
    """
    reader = Reader()
    for stamp, line in _documents(text):
        reader.line(line, time=stamp)
    return reader.points()


def has_documents(text: str) -> bool:
    """Whether the kernel's log has KTAP."""
    return next(_documents(text), None) is not None


def _documents(text: str) -> Iterator[tuple[float | None, str]]:
    """Yield the lines from the first one of KTAP on, without time stamp, and the time stamp."""
    inside = False
    for raw in text.splitlines():
        stamp = _STAMP.match(raw)
        line = raw[stamp.end() :] if stamp else raw
        inside = inside or bool(_VERSION.match(line.strip()) or _SUBTEST.match(line.strip()))
        if inside:
            yield (float(stamp["seconds"]) if stamp else None), line
