"""The results of kernel tests, as a tree of frozen test points."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal

import msgspec

from vmdebug.channel.log.trouble import Trouble, in_words

Status = Literal["passed", "failed", "skipped", "xfailed", "missing"]
"""`xfailed`: it failed as expected. `missing`: its plan names it, but it has no result; or the guest died."""

SEPARATOR = ": "
"""Between the names of a point's path, as the kselftest runner writes them."""

_PLACE = re.compile(r"(?<![\w./-])([\w./+-]+\.(?:c|h|S|rs|sh|py|pl|bash)):(\d+)\b")
_PRINTED = re.compile(r"\b(?:FAIL|ERROR|EXPECTATION|ASSERTION|Expected|expected|failed|error)")


class KernelTestPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A test point of KTAP, or a group of them: a collection, a program, a suite, a parameterized test.

    Args:
        name: Its name.
        status: Its result.
        number: Its number in its plan, from 1; 0 if it has none.
        directive: What follows the `#` of its result: "SKIP needs root", "exit=1", "TIMEOUT 45 seconds".
        diagnostics: The lines that the test printed before its result, without "# ".
        duration: How long it took, in seconds of this machine (kselftest) or of the guest (KUnit); None if
            that is unknown.
        ended: The time stamp of its result in the kernel's log, in seconds; None if it has none.
        points: The points that it consists of.
        troubles: The kernel's splats while it ran; those of its `points` are not among them.
    """

    name: str
    status: Status
    number: int = 0
    directive: str = ""
    diagnostics: tuple[str, ...] = ()
    duration: float | None = None
    ended: float | None = None
    points: tuple[KernelTestPoint, ...] = ()
    troubles: tuple[Trouble, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it, and each of its points, passed or was skipped, without kernel trouble."""
        return not self.failed and all(point.ok for point in self.points)

    @property
    def failed(self) -> bool:
        """Whether it has failed itself: not because of one of its `points`."""
        bad = self.status in ("failed", "missing") and all(point.ok for point in self.points)
        return bad or bool(self.troubles)

    @property
    def reason(self) -> str:
        """The text of its directive: "needs root" of "SKIP needs root"."""
        word, _, rest = self.directive.partition(" ")
        return rest.strip() if word.upper() in ("SKIP", "XFAIL", "TODO") else self.directive

    @property
    def place(self) -> str:
        """FILE:LINE of the first failed expectation in its diagnostics; "" if it names none."""
        lines = [line for line in self.diagnostics if _PLACE.search(line)]
        best = next((line for line in lines if _PRINTED.search(line)), lines[0] if lines else "")
        found = _PLACE.search(best)
        return f"{found[1]}:{found[2]}" if found else ""

    def explained(self) -> str:
        """Return why it failed: its directive, its diagnostics, the headlines of kernel trouble."""
        head = f"{self.status}: {self.directive}" if self.directive else self.status
        told = [f"kernel trouble while it ran: {in_words(self.troubles)}"] if self.troubles else []
        return "\n".join([head, *told, *self.diagnostics])


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many points have each result; a group counts only if it failed and none of its points did."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    xfailed: int = 0
    missing: int = 0

    def __str__(self) -> str:
        names = [name for name in self.__struct_fields__ if getattr(self, name)]
        return ", ".join(f"{getattr(self, name)} {name}" for name in names) or "no test points"


class KernelTestResults(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one run of kernel tests.

    Args:
        framework: "kselftest" or "kunit".
        points: The collections, or the suites.
        notes: What the user should know about the run.
    """

    framework: str
    points: tuple[KernelTestPoint, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no point failed or is missing, and the kernel had no trouble."""
        return all(point.ok for point in self.points)

    @property
    def counts(self) -> Counts:
        """How many points have each result."""
        found: dict[str, int] = {}
        for _, point in self.judged():
            status = "failed" if point.failed and point.status != "missing" else point.status
            found[status] = found.get(status, 0) + 1
        return Counts(**found)

    def judged(self) -> Iterator[tuple[str, KernelTestPoint]]:
        """Yield the points that count, each with its path: "timers: nanosleep", "list: list_test_list_add".

        They are the points without points of their own, and the groups that failed themselves.
        """
        yield from _judged(self.points, "")

    def failures(self) -> Iterator[tuple[str, KernelTestPoint]]:
        """Yield the points that failed or are missing, each with its path."""
        return ((path, point) for path, point in self.judged() if point.failed)

    def troubles(self) -> tuple[Trouble, ...]:
        """Return all kernel trouble of the run."""
        return tuple(trouble for point in _all(self.points) for trouble in point.troubles)

    def allowing(self, kinds: Collection[str]) -> KernelTestResults:
        """Return the results without kernel trouble of these kinds, which is then no failure."""
        return msgspec.structs.replace(self, points=tuple(_allowing(point, kinds) for point in self.points))


def _judged(points: tuple[KernelTestPoint, ...], above: str) -> Iterator[tuple[str, KernelTestPoint]]:
    for point in points:
        path = f"{above}{SEPARATOR}{point.name}" if above else point.name
        yield from _judged(point.points, path)
        if not point.points or point.failed:
            yield path, point


def _all(points: tuple[KernelTestPoint, ...]) -> Iterator[KernelTestPoint]:
    for point in points:
        yield point
        yield from _all(point.points)


def _allowing(point: KernelTestPoint, kinds: Collection[str]) -> KernelTestPoint:
    return msgspec.structs.replace(
        point,
        troubles=tuple(each for each in point.troubles if each.kind not in kinds),
        points=tuple(_allowing(each, kinds) for each in point.points),
    )


def group(
    name: str, points: tuple[KernelTestPoint, ...], *, duration: float | None = None
) -> KernelTestPoint:
    """Return a group, whose status is that of its points."""
    statuses = {point.status for point in points}
    if not all(point.ok for point in points):
        status: Status = "failed"
    else:
        status = "passed" if "passed" in statuses or not statuses else "skipped"
    return KernelTestPoint(name=name, status=status, points=points, duration=duration)
