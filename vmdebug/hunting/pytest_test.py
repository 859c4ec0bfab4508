"""A test of pytest as the workload of a hunt: its fixtures `session` and `vm` are the hunted guest's.

Each run is a run of pytest in the worker, for this one test, without vmdebug's own plugin: the hunt starts
the guest, and watches its kernel.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

from vmdebug.errors import HostError
from vmdebug.hunting.hunted_session import NotInHuntError
from vmdebug.session import DebugSession
from vmdebug.vm import Vm

_OPTIONS = ("-p", "no:vmdebug", "-p", "no:cacheprovider", "-p", "no:xdist", "-q")


def run(test: str, session: DebugSession) -> None:
    """Run a test, and raise what it raised.

    Args:
        test: Its id, FILE::NAME, with an absolute path.
        session: The hunted guest.

    Raises:
        NotInHuntError: there is no such test, or there are several, or it was skipped, or has other fixtures.
        HostError: pytest is not installed.
    """
    try:
        import pytest  # noqa: PLC0415 - only hunts of tests need it
    except ImportError as error:
        raise HostError("pytest is not installed", hint="install it: pip install pytest") from error
    watch = _Watch()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main([*_OPTIONS, test], plugins=[watch, _fixtures(session)])
    failure = watch.error
    if isinstance(failure, pytest.fail.Exception):
        raise AssertionError(str(failure)).with_traceback(failure.__traceback__)
    if isinstance(failure, Exception) and not isinstance(failure, pytest.FixtureLookupError):
        raise failure
    if failure is not None or status != 0 or watch.passed != 1:
        raise NotInHuntError(
            f"{test} cannot be hunted: it is not one test that runs with the fixtures session and vm",
            hint="name one test: FILE::NAME, with [PARAMETERS] if it has some",
            detail=said.getvalue().strip(),
        )


class _Watch:
    """Sees what becomes of the test."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.passed = 0

    def pytest_configure(self, config: Any) -> None:
        """Know the marker of vmdebug's own plugin."""
        config.addinivalue_line("markers", "vmdebug(…): the guest of a test; in a hunt it is the hunt's")

    def pytest_runtest_makereport(self, call: Any) -> None:
        """Keep the first exception of setup, test or teardown."""
        if call.excinfo is None:
            self.passed += call.when == "call"
        elif self.error is None:
            self.error = call.excinfo.value


def _fixtures(hunted: DebugSession) -> Any:
    """Return the fixtures of vmdebug's plugin; those that a hunt cannot give raise."""
    import pytest  # noqa: PLC0415 - as above

    class Fixtures:
        @pytest.fixture
        def session(self) -> DebugSession:
            return hunted

        @pytest.fixture
        def vm(self) -> Vm:
            return hunted.vm

        @pytest.fixture
        def gdb(self) -> Any:
            return hunted.gdb

        @pytest.fixture
        def console(self) -> Any:
            return hunted.console

        @pytest.fixture
        def halted_session(self) -> Any:
            return hunted.restart()

    return Fixtures()
