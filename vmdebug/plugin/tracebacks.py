"""What a failure shows of where it was raised: the test's suite, and nothing of vmdebug."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest

from vmdebug.errors import VmdebugError
from vmdebug.plugin.watch import GuestFailure

OURS = str(Path(__file__).parent.parent)


class Shortener:
    """Leaves vmdebug out of failures' tracebacks.

    No wrapper, so that its turn comes when pytest's unittest plugin has put in what a TestCase caught.

    Args:
        concerned: Whether a test has a guest.
    """

    def __init__(self, concerned: Callable[[pytest.Item], bool]) -> None:
        self._concerned = concerned

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Shorten what the report is made of."""
        if call.excinfo is not None and self._concerned(item) and not item.config.option.fulltrace:
            shorten(item, call.excinfo)


def shorten(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Leave out where in vmdebug, or below it, an error was raised: a test's reader wants the test."""
    steps = _steps(excinfo.tb)
    own = _last_of_suite(item, steps)
    if own is None:
        if isinstance(excinfo.value, GuestFailure):
            excinfo.value.pytrace = False
    elif any(_file(step).startswith(OURS) for step in steps[own:]):
        steps[own].tb_next = None
        if isinstance(excinfo.value, VmdebugError):
            excinfo.value.__cause__ = None  # what it came of inside vmdebug, its message says


def plain(item: pytest.Item, error: BaseException) -> BaseException:
    """Return an error by its words alone, where it is ours and none of the suite's lines led to it."""
    if not isinstance(error, VmdebugError) or _last_of_suite(item, _steps(error.__traceback__)) is not None:
        return error
    return pytest.fail.Exception(str(error), pytrace=False)


def _steps(traceback: TracebackType | None) -> list[TracebackType]:
    steps = []
    while traceback is not None:
        steps.append(traceback)
        traceback = traceback.tb_next
    return steps


def _file(step: TracebackType) -> str:
    return step.tb_frame.f_code.co_filename


def _last_of_suite(item: pytest.Item, steps: list[TracebackType]) -> int | None:
    """Return which step is the last one in the test's suite; None where none is."""
    return max((at for at, step in enumerate(steps) if _suites(item, _file(step))), default=None)


def _suites(item: pytest.Item, file: str) -> bool:
    """Whether a file is of the test's suite: its own, a conftest.py, a module of helpers."""
    if file == str(item.path):
        return True
    installed = file.startswith((OURS, sys.prefix, sys.base_prefix))
    return not installed and Path(file).is_relative_to(item.config.rootpath)
