"""The hooks around each test that has a guest; registered when the first such test is collected."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from vmdebug.errors import GuestDiedError, UsageError, VmdebugError
from vmdebug.guest import LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.plugin import FIXTURE, header, kernel_tests, markers, settings, targets, tracebacks
from vmdebug.plugin.fixture_guests import FixtureGuests
from vmdebug.plugin.guests import Guests, Wanted
from vmdebug.plugin.markers import MarkedTest
from vmdebug.plugin.settings import Settings
from vmdebug.plugin.status_line import StatusLine
from vmdebug.plugin.targets import Target

if TYPE_CHECKING:
    from vmdebug.plugin.coverage import TestCoverage

NAME = "vmdebug-run"

_GUEST_KEY = pytest.StashKey[FixtureGuests]()

_GDB = {"gdb", "halted_session"}
"""The fixtures that attach GDB."""


_SESSIONS = "sessions"
"""The fixture with several guests."""


class Run:
    """The tests on guests that one pytest process runs."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._progress = StatusLine(config)
        self._guest: FixtureGuests | None = None
        self._next: pytest.Item | None = None
        self._worker_header = _WorkerHeader(self) if hasattr(config, "workerinput") else None
        self.settings = settings.read(config)
        config.pluginmanager.register(tracebacks.Shortener(lambda item: _guest_of(item) is not None))
        self.guests = Guests(self._progress, boot_seconds=self.settings.boot_timeout)
        self._covers = _covers(self.settings, config)

    def targets(self, item: pytest.Item) -> dict[str, Target]:
        """Return the targets of a test, each by its id.

        Raises:
            UsageError: its marker is invalid.
        """
        return targets.of(self.settings, _marked_test(item))

    def guest(self, request: pytest.FixtureRequest) -> FixtureGuests:
        """Start the guest of a test, for the fixture that all others are based on."""
        __tracebackhide__ = True
        item = request.node
        try:
            return self._started(request)
        except VmdebugError as error:
            # No traceback: it would contain only lines of vmdebug.
            raise pytest.fail.Exception(
                f"the guest of {item.name}: {_message(item, error)}", pytrace=False
            ) from None
        finally:
            self._progress.clear()

    def _started(self, request: pytest.FixtureRequest) -> FixtureGuests:
        item = request.node
        wanted = _wanted(item, self.guests.spec(self._options(item)))
        guest = FixtureGuests(
            wanted,
            settings=self.settings,
            marker=_marked_test(item).marker,
            guests=self.guests,
            covers=self._covers,
        )
        item.stash[_GUEST_KEY] = self._guest = guest
        if self._worker_header is not None:
            guest.header = self._worker_header.lines(item)
        guest.start()
        return guest

    def _options(self, item: pytest.Item) -> GuestOptions:
        test = _marked_test(item)
        callspec = getattr(item, "callspec", None)
        target = None if callspec is None else callspec.params.get(FIXTURE)
        target = _target_of(target, targets.of(self.settings, test))
        halted = test.marker.halt if test.marker.halt is not None else _halts(item)
        return targets.options(
            self.settings,
            test.marker,
            target,
            halted=halted,
            together=_SESSIONS in _fixtures(item),
            where=test.path.parent,
        )

    def _begin_next(self) -> None:
        """Start the next test's guest while this test runs, if it is known to be quick."""
        item = self._next
        if item is None or FIXTURE not in _fixtures(item):
            return
        with contextlib.suppress(VmdebugError, pytest.UsageError):  # the next test itself reports the error
            spec = self.guests.known(self._options(item))
            if spec is not None:
                self.guests.begin(_wanted(item, spec))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, nextitem: pytest.Item | None
    ) -> Generator[None, bool | None, bool | None]:
        """Record which test is next."""
        self._next = nextitem
        return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Watch the guest while other fixtures are set up on it."""
        __tracebackhide__ = True
        with _watched(item):
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Watch the guest while the test runs: its failure ends the test."""
        __tracebackhide__ = True
        self._begin_next()
        with _watched(item, look=True):
            result = yield
            if (guest := _guest_of(item)) is not None:
                guest.find_leaks()
            return result

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Watch the guest while other fixtures are torn down, which may still use it; then end it."""
        __tracebackhide__ = True
        try:
            with _watched(item, look=True, last=True):
                return (yield)
        finally:
            if (guest := _guest_of(item)) is not None:
                _stop_timeout(item)
                guest.close()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the report about the guest to a failed test's report."""
        report = yield
        if (guest := _guest_of(item)) is not None:
            path, point = item.stash.get(kernel_tests.POINT, ("", None))
            if point is not None:
                report.duration = point.duration or 0.0
                if report.failed:
                    kernel_tests.add_sections(report, guest.first.explain_point(point))
            elif report.failed or (guest.first.points_failed and call.when == "call"):
                _stop_timeout(item)
                report.sections.extend(guest.explain())
            # pytest-xdist sends it to the controller as a part of the report.
            facts = {"header": guest.header, "slow": guest.slow, "kept": guest.kept, "point": path}
            report.vmdebug = facts  # type: ignore[attr-defined]
        return report

    def pytest_enter_pdb(self) -> None:
        """Stop watching the test, because somebody is debugging it."""
        if self._guest is not None:
            self._guest.disarm()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """End the templates, and the guest of an interrupted test."""
        try:
            if self._guest is not None:
                self._guest.close()
        finally:
            self.guests.close()
            if self._covers is not None:
                self._covers.finish()

    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> list[str]:
        """Return the header lines: what the tests run on."""
        if self._config.option.collectonly:
            return []
        try:
            using = [item for item in items if FIXTURE in _fixtures(item)]
            wanted = {target: name for item in using for name, target in self.targets(item).items()}
        except VmdebugError:
            return []  # a marker is invalid; pytest ends with that error
        return header.lines(wanted, self.settings, self.guests)


class _WorkerHeader:
    """The header of a pytest-xdist worker. A worker has no terminal, and sends it with its tests' reports.

    Args:
        run: The worker's run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen: set[Target] = set()

    def lines(self, item: pytest.Item) -> list[str]:
        """Return the header lines about the targets of a test; [] if an earlier test had the same ones."""
        wanted = {target: name for name, target in self._run.targets(item).items()}
        if wanted.keys() <= self._seen:
            return []
        self._seen |= wanted.keys()
        return header.lines(wanted, self._run.settings, self._run.guests)


def _covers(settings: Settings, config: pytest.Config) -> TestCoverage | None:
    if settings.coverage is None:
        return None
    from vmdebug.plugin.coverage import TestCoverage  # noqa: PLC0415 - few runs record coverage

    return TestCoverage(settings.coverage, getattr(config, "workerinput", {}).get("workerid", ""))


@contextlib.contextmanager
def _watched(item: pytest.Item, *, look: bool = False, last: bool = False) -> Iterator[None]:
    """Run a phase of a test, and fail it if its guest fails.

    Args:
        item: The test; its guest may be started in the phase.
        look: Whether to look at the end for trouble that the console does not show.
        last: Whether the phase is the teardown. It runs even after the guest has failed; if it fails itself,
            vmdebug collects the report at once, because the guest ends with the teardown.

    Raises:
        GuestFailure: the guest has failed.
    """
    __tracebackhide__ = True
    try:
        if (guest := _guest_of(item)) is not None:
            guest.arm()
            if not last:
                guest.check()
        yield
        if (guest := _guest_of(item)) is not None:
            guest.disarm()
            guest.check(look=look)
    except (KeyboardInterrupt, SystemExit, pytest.exit.Exception):
        raise
    except BaseException as error:
        if (guest := _guest_of(item)) is None:
            raise
        guest.disarm()
        judged = tracebacks.plain(item, guest.judged(error))
        if last:
            _stop_timeout(item)
            guest.gather()
        if judged is error:
            raise
        raise judged from None
    finally:
        if (guest := _guest_of(item)) is not None:
            guest.disarm()


def _target_of(made_for: Target | None, wanted: dict[str, Target]) -> Target:
    """Return the target of a test.

    Args:
        made_for: The target that pytest made the test for; None if pytest did not know then that the test has
            a guest.
        wanted: The targets according to all its markers, including those of its parameters.

    Raises:
        UsageError: the test would have to run on several targets.
    """
    if made_for is not None:
        if made_for in wanted.values():
            return made_for
        near = {
            name: each
            for name, each in wanted.items()
            if each.guest == made_for.guest or each.kernel == made_for.kernel
        }
        wanted = near or wanted
    if len(wanted) > 1:
        raise UsageError(
            f"this test would run on {', '.join(wanted)}, but pytest made only one test of it, because"
            " it did not know that the test has a guest when it collected the tests",
            hint='mark it: @pytest.mark.usefixtures("vm"); the marker of a parameter can name only one guest',
        )
    return next(iter(wanted.values()))


def _stop_timeout(item: pytest.Item) -> None:
    """Stop pytest-timeout's timer, as pytest-timeout does when a test fails.

    Otherwise the timer could raise while vmdebug collects its report, which would end the whole run.
    """
    cancel = getattr(item.config.hook, "pytest_timeout_cancel_timer", None)
    if cancel is not None:
        cancel(item=item)


def _guest_of(item: pytest.Item) -> FixtureGuests | None:
    return item.stash.get(_GUEST_KEY, None)


def _message(item: pytest.Item, error: VmdebugError) -> str:
    """Return the message for a guest that did not start, without what the report of the test shows."""
    guest = _guest_of(item)
    if guest is None or not guest.has_sections:
        return str(error)
    # GuestDiedError's hint names a log that no longer exists.
    hint = "" if isinstance(error, GuestDiedError) else error.hint
    return "\n".join(part for part in (error.message, hint) if part)


def _wanted(item: pytest.Item, spec: LaunchSpec) -> Wanted:
    name = getattr(item, "originalname", item.name)
    fixtures = _fixtures(item)
    count = _marked_test(item).marker.sessions if _SESSIONS in fixtures else 1
    return Wanted(test=item.nodeid, name=name, spec=spec, gdb=not _GDB.isdisjoint(fixtures), count=count)


def _marked_test(item: pytest.Item) -> MarkedTest:
    return MarkedTest(item.path, markers.read(item.iter_markers("vmdebug")))


def _halts(item: pytest.Item) -> bool:
    return "halted_session" in _fixtures(item)


def _fixtures(item: pytest.Item) -> Collection[str]:
    return getattr(item, "fixturenames", ())
