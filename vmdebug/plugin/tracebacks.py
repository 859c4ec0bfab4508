"""Removes vmdebug's own lines from the traceback of a failed test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest

from vmdebug.errors import VmdebugError
from vmdebug.plugin.failure_watch import GuestFailure

OURS = str(Path(__file__).parent.parent)


class Shortener:
    """Leaves vmdebug's lines out of tracebacks.

    Its hook is not a wrapper, so it runs after pytest's unittest plugin has stored the error of a TestCase.

    Args:
        concerned: Tells whether a test has a guest.
    """

    def __init__(self, concerned: Callable[[pytest.Item], bool]) -> None:
        self._concerned = concerned

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Shorten the traceback that the report is made from."""
        if call.excinfo is not None and self._concerned(item) and not item.config.option.fulltrace:
            shorten(item, call.excinfo)


def shorten(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Cut a traceback after the test suite's last line."""
    steps = _steps(excinfo.tb)
    own = _last_of_suite(item, steps)
    if own is None:
        if isinstance(excinfo.value, GuestFailure):
            excinfo.value.pytrace = False
    elif any(_file(step).startswith(OURS) for step in steps[own:]):
        steps[own].tb_next = None
        if isinstance(excinfo.value, VmdebugError):
            excinfo.value.__cause__ = None  # its message already contains the cause


def plain(item: pytest.Item, error: BaseException) -> BaseException:
    """Return a vmdebug error without its traceback if that contains no line of the test suite."""
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
    """Return the index of the last step in the test suite; None if there is none."""
    return max((at for at, step in enumerate(steps) if _suites(item, _file(step))), default=None)


def _suites(item: pytest.Item, file: str) -> bool:
    """Whether a file belongs to the test suite: the test's own, a conftest.py, a module of helpers."""
    if file == str(item.path):
        return True
    installed = file.startswith((OURS, sys.prefix, sys.base_prefix))
    return not installed and Path(file).is_relative_to(item.config.rootpath)
