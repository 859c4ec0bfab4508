"""The fixture `ktests`: each point of kernel tests is a subtest, with a report of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from _pytest._code.code import ExceptionChainRepr

from vmdebug.errors import UsageError
from vmdebug.ktests.results import KernelTestPoint, KernelTestResults

if TYPE_CHECKING:
    from vmdebug.plugin.fixture_guest import FixtureGuest

POINT = pytest.StashKey[tuple[str, KernelTestPoint]]()
"""The test point whose subtest is being reported, with its path; in the stash of the item."""


class PointFailure(pytest.fail.Exception):  # type: ignore[name-defined,misc] # a class attribute of a function
    """A test point failed."""

    __module__ = "builtins"


class KernelTestReporter:
    """Reports kernel tests as subtests of a test.

    Args:
        request: The test's request.
        guest: The test's guest.
    """

    def __init__(self, request: pytest.FixtureRequest, guest: FixtureGuest) -> None:
        self._item = request.node
        self._guest = guest
        try:
            self._subtests: Any = request.getfixturevalue("subtests")
        except pytest.FixtureLookupError:
            raise UsageError(
                f"this pytest, {pytest.__version__}, has no subtests",
                hint="install pytest 9 or newer, or the package pytest-subtests",
            ) from None

    def __call__(self, results: KernelTestResults) -> KernelTestResults:
        """Make a subtest of each test point, and return the results.

        Kernel trouble fails the subtest of the point that ran, unless the test's marker allows it.

        Args:
            results: What `session.kselftest` or `session.kunit` has returned.
        """
        __tracebackhide__ = True
        self._guest.reported(results)
        for path, point in results.allowing(self._guest.allowed).judged():
            with self._reporting(path, point), self._subtests.test(path):
                _end(path, point)
        return results

    def kselftest(self, *tests: str, **options: Any) -> KernelTestResults:
        """Run kselftests as `session.kselftest` does, and report each point."""
        __tracebackhide__ = True
        return self(self._guest.session.kselftest(*tests, **options))

    def kunit(self, *suites: os.PathLike[str] | str, **options: Any) -> KernelTestResults:
        """Run KUnit suites as `session.kunit` does, and report each point."""
        __tracebackhide__ = True
        return self(self._guest.session.kunit(*suites, **options))

    @contextmanager
    def _reporting(self, path: str, point: KernelTestPoint) -> Iterator[None]:
        self._item.stash[POINT] = path, point
        try:
            yield
        finally:
            del self._item.stash[POINT]


def _end(path: str, point: KernelTestPoint) -> None:
    """End a subtest as its point ended; pytest needs a visible line for a skip."""
    if point.failed:
        place = f"{point.place}: " if point.place else ""
        raise PointFailure(f"{place}{path}\n{point.explained()}", pytrace=False)
    if point.status == "skipped":
        pytest.skip(point.reason or "skipped")
    if point.status == "xfailed":
        pytest.xfail(point.reason or "an expected failure")


def add_sections(report: pytest.TestReport, sections: Sequence[tuple[str, str]]) -> None:
    """Add sections to the failure of a test point itself, so that JUnit's XML has them too."""
    for title, text in sections:
        if isinstance(report.longrepr, ExceptionChainRepr):
            report.longrepr.addsection(title, text)
        else:
            report.sections.append((title, text))


def separate_in_junit(xml: Any) -> None:
    """Give each test point an element `testcase` of its own; pytest puts all subtests into their test's.

    Args:
        xml: pytest's LogXML.
    """
    usual = xml.node_reporter

    def node_reporter(report: Any) -> Any:
        path = getattr(report, "vmdebug", {}).get("point", "")
        if not path:
            return usual(report)
        found = usual(f"{report.nodeid}::{path}")
        # As `record_xml_attribute` does: otherwise the name is the test's.
        found.add_attribute("name", f"{report.location[2]} [{path}]")
        return found

    xml.node_reporter = node_reporter
