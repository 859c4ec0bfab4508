"""What happens around each test that has a guest; registered when the first one is collected."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from vmdebug.errors import GuestDiedError, UsageError, VmdebugError
from vmdebug.plugin import header, settings, tracebacks
from vmdebug.plugin.guests import Guests, Wanted
from vmdebug.plugin.lease import Lease
from vmdebug.plugin.progress import Progress
from vmdebug.plugin.settings import Asked, Target

if TYPE_CHECKING:
    from vmdebug.guest import GuestOptions, LaunchSpec

NAME = "vmdebug-run"

_LEASE = pytest.StashKey[Lease]()

_GDB = {"gdb", "halted_session"}
"""The fixtures that attach GDB by themselves."""


class Run:
    """One pytest process's run of tests on guests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._progress = Progress(config)
        self._lease: Lease | None = None
        self._next: pytest.Item | None = None
        self._unsaid = _Unsaid(self) if hasattr(config, "workerinput") else None
        self.settings = settings.read(config)
        config.pluginmanager.register(tracebacks.Shortener(lambda item: _lease(item) is not None))
        self.guests = Guests(self._progress, boot_seconds=self.settings.boot_timeout)

    def targets(self, item: pytest.Item) -> dict[str, Target]:
        """Return what a test runs on.

        Raises:
            UsageError: its marker cannot be right.
        """
        return settings.targets(self.settings, _asked(item))

    def lease(self, request: pytest.FixtureRequest) -> Lease:
        """Start the guest of a test; for the fixture that all others stand on."""
        __tracebackhide__ = True
        item = request.node
        try:
            return self._started(request)
        except VmdebugError as error:
            # Where in vmdebug it was raised is nobody's business.
            raise pytest.fail.Exception(
                f"the guest of {item.name}: {_words(item, error)}", pytrace=False
            ) from None
        finally:
            self._progress.clear()

    def _started(self, request: pytest.FixtureRequest) -> Lease:
        item = request.node
        wanted = _wanted(item, self.guests.spec(self._options(item)))
        lease = Lease(wanted, settings=self.settings, wish=_asked(item).wish, guests=self.guests)
        item.stash[_LEASE] = self._lease = lease
        if self._unsaid is not None:
            lease.header = self._unsaid.lines(item)
        lease.start()
        return lease

    def _options(self, item: pytest.Item) -> GuestOptions:
        asked = _asked(item)
        callspec = getattr(item, "callspec", None)
        target = None if callspec is None else callspec.params.get(header.FIXTURE)
        target = _fitting(target, settings.targets(self.settings, asked))
        halted = asked.wish.halt if asked.wish.halt is not None else _halting(item)
        return settings.options(self.settings, asked.wish, target, halted=halted)

    def _begin_next(self) -> None:
        """Have the next test's guest made while this test runs, where that is known to be quick."""
        item = self._next
        if item is None or header.FIXTURE not in _fixtures(item):
            return
        with contextlib.suppress(VmdebugError, pytest.UsageError):  # told when its turn has come
            spec = self.guests.known(self._options(item))
            if spec is not None:
                self.guests.begin(_wanted(item, spec))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, nextitem: pytest.Item | None
    ) -> Generator[None, bool | None, bool | None]:
        """Note which test is the next."""
        self._next = nextitem
        return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The guest is watched while other fixtures are set up on it."""
        __tracebackhide__ = True
        with _watched(item):
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The guest's failure ends the test."""
        __tracebackhide__ = True
        self._begin_next()
        with _watched(item):
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The guest is watched while other fixtures are torn down, and then ended: they may still ask it."""
        __tracebackhide__ = True
        try:
            with _watched(item, last=True):
                return (yield)
        finally:
            if (lease := _lease(item)) is not None:
                _unhurried(item)
                lease.close()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """A failure explains itself."""
        report = yield
        if (lease := _lease(item)) is not None:
            if report.failed:
                _unhurried(item)
                report.sections.extend(lease.explain())
            # Goes to the controller of pytest-xdist with the report, as everything in it does.
            facts = {"header": lease.header, "slow": lease.slow, "kept": lease.kept}
            report.vmdebug = facts  # type: ignore[attr-defined]
        return report

    def pytest_enter_pdb(self) -> None:
        """A person looks at the test: nothing ends what they do."""
        if self._lease is not None:
            self._lease.disarm()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Nothing of a template outlives the tests, nor does a guest whose test was interrupted."""
        try:
            if self._lease is not None:
                self._lease.close()
        finally:
            self.guests.close()

    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> list[str]:
        """Say what the tests will run on."""
        if self._config.option.collectonly:
            return []
        return header.lines(self, items)


class _Unsaid:
    """The header of a pytest-xdist worker's run, which has no terminal: told with its tests' reports.

    Args:
        run: The worker's run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen: set[Target] = set()

    def lines(self, item: pytest.Item) -> list[str]:
        """Return what has to be said of a test's guests for the first time."""
        wanted = set(self._run.targets(item).values())
        if wanted <= self._seen:
            return []
        self._seen |= wanted
        return header.lines(self._run, [item])


@contextlib.contextmanager
def _watched(item: pytest.Item, *, last: bool = False) -> Iterator[None]:
    """Run a phase of a test, and fail it by what its guest does.

    Args:
        item: The test; its guest may be made in the phase.
        last: Whether it is the teardown: nothing keeps it from being run, and its failure has its report at
            once, for the guest is ended then.

    Raises:
        GuestFailure: the guest has failed.
    """
    __tracebackhide__ = True
    try:
        if (lease := _lease(item)) is not None:
            lease.arm()
            if not last:
                lease.check()
        yield
        if (lease := _lease(item)) is not None:
            lease.disarm()
            lease.check()
    except (KeyboardInterrupt, SystemExit, pytest.exit.Exception):
        raise
    except BaseException as error:
        if (lease := _lease(item)) is None:
            raise
        lease.disarm()
        judged = tracebacks.plain(item, lease.judged(error))
        if last:
            _unhurried(item)
            lease.gather()
        if judged is error:
            raise
        raise judged from None
    finally:
        if (lease := _lease(item)) is not None:
            lease.disarm()


def _fitting(made_for: Target | None, wanted: dict[str, Target]) -> Target:
    """Return what a test runs on.

    Args:
        made_for: The cell of the matrix that it was made for; None: it was not known to have a guest.
        wanted: What it is to run on, by all its markers: its parameter's were not known then either.

    Raises:
        UsageError: it is to run on several.
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
            f"this test is to run on {', '.join(wanted)}, and is only one: when tests were made of them it "
            "was not known to have a guest",
            hint='mark it: @pytest.mark.usefixtures("vm"); a marker of a parameter can name one guest only',
        )
    return next(iter(wanted.values()))


def _unhurried(item: pytest.Item) -> None:
    """Stop pytest-timeout's timer, as that does itself once a failure is reported.

    It raises where nothing of the test runs any more, in the middle of a report, which ends the whole run.
    """
    cancel = getattr(item.config.hook, "pytest_timeout_cancel_timer", None)
    if cancel is not None:
        cancel(item=item)


def _lease(item: pytest.Item) -> Lease | None:
    return item.stash.get(_LEASE, None)


def _words(item: pytest.Item, error: VmdebugError) -> str:
    """Return what is said of a guest that could not be had; what its report shows better is left out."""
    lease = _lease(item)
    if lease is None or not lease.told:
        return str(error)
    hint = "" if isinstance(error, GuestDiedError) else error.hint  # of a log that has gone
    return "\n".join(part for part in (error.message, hint) if part)


def _wanted(item: pytest.Item, spec: LaunchSpec) -> Wanted:
    name = getattr(item, "originalname", item.name)
    return Wanted(test=item.nodeid, name=name, spec=spec, gdb=not _GDB.isdisjoint(_fixtures(item)))


def _asked(item: pytest.Item) -> Asked:
    return Asked(item.path, settings.wish(item.iter_markers("vmdebug")))


def _halting(item: pytest.Item) -> bool:
    return "halted_session" in _fixtures(item)


def _fixtures(item: pytest.Item) -> Collection[str]:
    return getattr(item, "fixturenames", ())
