"""One guest of a test's fixtures: starts it, watches it, makes the report if the test fails, and ends it."""

from __future__ import annotations

import contextlib
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmdebug import paths, postmortem
from vmdebug.channel.log.trouble import Trouble
from vmdebug.channel.log.watcher import Watcher
from vmdebug.deadline import Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import UsageError, VmdebugError
from vmdebug.ktests.results import KernelTestPoint, KernelTestResults
from vmdebug.plugin import leaks
from vmdebug.plugin.failure_watch import FailureWatch, GuestFailure
from vmdebug.plugin.guests import Guests, Wanted
from vmdebug.plugin.main_thread import MainThreadInterrupt
from vmdebug.plugin.markers import Marker
from vmdebug.plugin.settings import Settings
from vmdebug.recording import files, store
from vmdebug.session import DebugSession
from vmdebug.vm import Vm
from vmdebug.vm.kernel_trouble import SETTLE_SECONDS

if TYPE_CHECKING:
    from vmdebug.covering import Coverage
    from vmdebug.plugin.coverage import TestCoverage

REPORT_SECONDS = 60.0
"""How long the report of a failure may take."""

_FOLDER_CHARACTERS = 120


class FixtureGuest:
    """One guest of a test.

    Args:
        wanted: The guest to start.
        settings: The settings of the test run.
        marker: The test's marker.
        guests: Starts guests.
        interrupter: Interrupts the test; those of one test share it.
        covers: Records which code the guest executes, or None.
        label: What tells it from the test's other guests in the report; "" if it is the only one.
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        settings: Settings,
        marker: Marker,
        guests: Guests,
        interrupter: MainThreadInterrupt,
        covers: TestCoverage | None = None,
        label: str = "",
    ) -> None:
        self.slow = ""
        """Why the guest is not a clone; "" if it is one."""
        self.kept = ""
        """The name of the VM, if it is left running after the test; or ""."""
        self._wanted = wanted
        self._settings = settings
        self._marker = marker
        self._guests = guests
        self._held = contextlib.ExitStack()
        self._interrupter = interrupter
        self._label = label
        self._covers = covers
        self._cover: Coverage | None = None
        self._session: DebugSession | None = None
        self._watch: FailureWatch | None = None
        self._watching = contextlib.ExitStack()
        self._until: Deadline | None = None
        self._failed = False
        self._points_failed = False
        self._began = 0
        self._explained: int | None = None
        self._sections: list[tuple[str, str]] = []

    @property
    def session(self) -> DebugSession:
        """The session on the guest; its console and its GDB are opened when they are first used."""
        if self._session is None:
            raise UsageError("the test's guest has ended")
        return self._session

    def start(self, *, beside: Vm | None = None) -> None:
        """Start the guest, and watch it.

        Args:
            beside: The VM whose segments it joins; None: segments of its own.

        Raises:
            VmdebugError: it does not start, or its shell does not answer.
        """
        spec = self._wanted.spec
        if not spec.halt and spec.record is None:
            found = self._guests.template(self._wanted, lost=self._lost)
            if found.how != "clone":
                self.slow = f"{spec.guest}: each test starts its guest by {found.how}: {found.reason}"
        guest = self._guests.guest(self._wanted, beside=beside, lost=self._lost)
        self._session = DebugSession(guest.vm, owned=False, preloaded=guest.preloaded)
        if guest.preloaded is not None:
            self._held.push(guest.preloaded)
        self._held.callback(self._end)
        self._held.enter_context(self._watching)
        self._look_after(guest.vm)
        self._session.restarted = self._restarted
        self._session.tested = self._tested
        if self._marker.kmemleak and not spec.halt:
            self._began = leaks.now(self._session.exec)
        self._begin_coverage()
        self.arm()

    def _begin_coverage(self) -> None:
        if self._covers is not None:
            self._cover = self._covers.begin(self.session)

    def _end_coverage(self) -> None:
        cover, self._cover = self._cover, None
        if self._covers is not None and cover is not None:
            self._covers.end(cover, self._wanted.test)

    def arm(self) -> None:
        """From now on, fail the test as soon as its guest fails or its timeout passes."""
        if self._watch is None:
            return
        timeout = self._settings.timeout if self._marker.timeout is None else self._marker.timeout
        self._until = Deadline.after(timeout) if timeout else None
        self._watch.until(self._until)
        self._interrupter.arm()

    def attach(self, *, halted: bool = False) -> Gdb:
        """Return GDB, attached: the first call stops the guest.

        Args:
            halted: Whether the guest must be at the reset vector.

        Raises:
            UsageError: it has booted already.
            VmdebugError: see `DebugSession.gdb`.
        """
        if halted and not self._wanted.spec.halt:
            raise UsageError(
                "halted_session needs a guest at the reset vector, and this test's has booted",
                hint="make it an argument of the test, or mark the test: @pytest.mark.vmdebug(halt=True)",
            )
        return self.session.gdb

    def disarm(self) -> None:
        """No longer interrupt the test when its guest fails or its timeout passes."""
        self._interrupter.disarm()
        self._until = None
        if self._watch is not None:
            self._watch.until(None)

    def check(self, *, look: bool = False) -> None:
        """Fail the test if its guest has failed, unless the test has already failed with that.

        Args:
            look: Whether to look also for trouble that the console does not show.

        Raises:
            GuestFailure: the guest has failed, even if the test caught the error.
        """
        __tracebackhide__ = True
        if look and self._watch is not None:
            self._watch.look()
        failure = None if self._watch is None else self._watch.failure()
        if failure is not None:
            raise failure

    def find_leaks(self) -> None:
        """Look for leaks of the test with kmemleak, if the test's marker asks for it.

        Raises:
            UsageError: this kernel does not have kmemleak.
            GuestFailure: the scan has found leaks.
            VmdebugError: the guest's shell does not answer.
        """
        __tracebackhide__ = True
        if not self._marker.kmemleak or self._session is None:
            return
        found = leaks.find(self._session.exec, self._began)
        if found and "kmemleak" not in self._marker.allow:
            raise GuestFailure(f"kernel kmemleak: the test leaked memory\n{found}", pytrace=False)

    def judged(self, error: BaseException) -> BaseException:
        """Return the error that an interrupted test fails with: that error, or the guest's failure instead.

        The guest's failure replaces a skip, and a vmdebug error, which is only its consequence; it gets the
        traceback of the error. If the error already contains the guest's failure, the test fails with it.

        Args:
            error: The error that ended the test.
        """
        if self._watch is None:
            return error
        self._watch.look()
        failure = self._watch.failure()
        if failure is None:
            return error
        reported = _reports(error, failure) and not isinstance(error, pytest.skip.Exception)
        replaced = not reported and isinstance(error, (VmdebugError, pytest.skip.Exception))
        if reported or replaced:  # otherwise the end of the test reports it
            self._watch.settled()
        return failure.with_traceback(error.__traceback__) if replaced else error

    @property
    def allowed(self) -> frozenset[str]:
        """The kinds of kernel trouble that do not fail the test."""
        return frozenset(self._marker.allow)

    def reported(self, results: KernelTestResults) -> None:
        """Leave the kernel trouble of kernel tests to the reports of their points."""
        if self._watch is not None:
            self._watch.reported([*results.troubles(), *self._watch.of_kind("kunit")])

    def explain_point(self, point: KernelTestPoint) -> list[tuple[str, str]]:
        """Return the report sections of a failed test point: the kernel's splats while it ran, decoded."""
        self._points_failed = True
        if self._session is None:
            return []
        splats = postmortem.splats(point.troubles, self._session.vm.state.spec.kernel)
        return [(f"vmdebug: {splat.title}", splat.text) for splat in splats]

    @property
    def points_failed(self) -> bool:
        """Whether a test point has failed, so that pytest will report the test as failed."""
        return self._points_failed

    @property
    def has_sections(self) -> bool:
        """Whether sections are waiting for the test's next report."""
        return bool(self._sections)

    def explain(self) -> list[tuple[str, str]]:
        """Return the report sections of a failed test; each one only once."""
        self.gather()
        found, self._sections = self._sections, []
        return found

    def gather(self) -> None:
        """Collect the report of a failed test while its guest exists, and write it to the artifacts.

        A later failure of the same test gets a report only if the kernel has printed another splat.
        """
        self._failed = True
        self.disarm()
        if self._session is None or self._watch is None:
            return
        troubles = self._watch.troubles
        if self._explained is None or len(troubles) > self._explained:
            self._explained = len(troubles)
            self._sections = self._collect(self._session, troubles)

    def close(self) -> None:
        """End the guest, unless its test failed and `keep` is set."""
        self.disarm()
        self._held.close()

    def _look_after(self, vm: Vm) -> None:
        # kmemleak's message on the console does not say what leaked, or when; `find_leaks` does.
        allow = (*self._marker.allow, *(("kmemleak",) if self._marker.kmemleak else ()))
        watch = FailureWatch(vm, allow=allow, alarm=self._interrupter.interrupt)
        self._watch = self._watching.enter_context(watch)

    def _restarted(self) -> None:
        """Watch the VM that replaced the test's VM."""
        self.check()
        self._end_coverage()
        self._begin_coverage()
        self._began = 0  # the new kernel counts jiffies from the start
        self._watching.close()
        self._look_after(self.session.vm)
        if self._watch is not None:
            self._watch.until(self._until)

    @contextlib.contextmanager
    def _tested(self) -> Iterator[None]:
        """Let kernel trouble of kernel tests not interrupt the test; see `DebugSession.tested`."""
        with contextlib.nullcontext() if self._watch is None else self._watch.deferring():
            yield

    def _lost(self, vm: Vm) -> None:
        """Collect the report about a guest whose shell does not answer, before the guest ends."""
        self._failed = True
        with contextlib.suppress(VmdebugError, OSError):  # the error that led here fails the test
            with Watcher(vm.rundir.console_log) as console:
                troubles = console.settle(Deadline.after(SETTLE_SECONDS))
            self._sections = self._collect(DebugSession(vm, owned=False), troubles)
            self._keep(vm)

    def _end(self) -> None:
        session, self._watch = self.session, None
        try:
            self._end_coverage()
        finally:
            self._session = None
        try:
            session.close()
        finally:
            if not self._keep(session.vm):
                recording = session.vm.state.spec.record
                # QEMU writes the end of its log when it quits.
                session.vm.stop(force=recording is None)
                if recording is not None:
                    self._settle(recording)

    def _settle(self, recording: Path) -> None:
        """Keep the recording of a failed test, among its artifacts if there are any; delete another one."""
        if not self._failed:
            store.delete(recording)
        elif (to := self._recording_place()) is not None:
            shutil.rmtree(to, ignore_errors=True)
            shutil.move(recording, to)

    def _recording_place(self) -> Path | None:
        folder = self._folder()
        return None if folder is None else folder / f"guest{files.ENDING}"

    def _keep(self, vm: Vm) -> bool:
        """Leave a failed test's VM running if `keep` is set; return whether it stays."""
        if not self._failed or not self._settings.keep or not vm.state.qemu.alive():
            return False
        vm.keep()
        self.kept = vm.name
        return True

    def _collect(self, session: DebugSession, troubles: tuple[Trouble, ...]) -> list[tuple[str, str]]:
        folder = self._folder()
        dump = folder / "vmcore" if folder is not None and self._settings.dump else None
        try:
            if folder is not None:
                _empty(folder)
            report = postmortem.collect(
                session, troubles=troubles, dump=dump, deadline=Deadline.after(REPORT_SECONDS)
            )
            if folder is not None:
                report.write(folder)
        except (VmdebugError, OSError) as error:
            reason = paths.failure(error) if isinstance(error, OSError) else str(error)
            return [(self._title("no report"), reason)]
        found = [(self._title(section.title), section.text) for section in report.sections]
        if recording := session.vm.state.spec.record:
            place = self._recording_place() or recording
            found.append((self._title("recording"), f"vmdebug replay {place}"))
        return found if folder is None else [*found, (self._title("artifacts"), str(folder))]

    def _title(self, words: str) -> str:
        return f"vmdebug: {self._label}: {words}" if self._label else f"vmdebug: {words}"

    def _folder(self) -> Path | None:
        top = self._settings.artifacts
        return None if top is None else top / folder_name(self._wanted.test) / self._label


def _reports(error: BaseException | None, failure: GuestFailure) -> bool:
    """Whether an error is this failure, or was raised while Python handled the failure."""
    if error is None or error is failure:
        return error is failure
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return _reports(error.__context__, failure) or any(_reports(part, failure) for part in parts)


def _empty(folder: Path) -> None:
    """Make a test's directory, and remove the report of an earlier run from it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("*.txt"), folder / "vmcore"]:
        path.unlink(missing_ok=True)


def folder_name(test: str) -> str:
    """Return the name of a test's directory, which is unique.

    Args:
        test: Its node id.
    """
    plain = re.sub(r"[/\\]|::|\[", "-", test).removesuffix("]")
    name = re.sub(r"[^A-Za-z0-9_.+=,-]+", "_", plain)[:_FOLDER_CHARACTERS]
    # Add a checksum to a changed name, because another test may have the same.
    return name if name == plain else f"{name}-{zlib.crc32(test.encode()):08x}"
