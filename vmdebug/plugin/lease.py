"""One test's guest, from its start to its report and its end."""

from __future__ import annotations

import contextlib
import re
import zlib
from pathlib import Path

import pytest

from vmdebug import postmortem
from vmdebug.channel.serial.trouble import Trouble
from vmdebug.channel.serial.watcher import Watcher
from vmdebug.deadline import Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.errors import UsageError, VmdebugError
from vmdebug.plugin.guests import Guests, Wanted
from vmdebug.plugin.interrupt import Interrupter
from vmdebug.plugin.settings import Settings, Wish
from vmdebug.plugin.watch import SETTLE_SECONDS, GuestFailure, Watch
from vmdebug.session import DebugSession
from vmdebug.vm import Vm

REPORT_SECONDS = 60.0
"""How long a failure's report may take."""

_FOLDER_CHARACTERS = 120


class Lease:
    """The guest of one test.

    Args:
        wanted: The guest.
        settings: The run's.
        wish: The test's.
        guests: Where guests come from.
    """

    def __init__(self, wanted: Wanted, *, settings: Settings, wish: Wish, guests: Guests) -> None:
        self.header: list[str] = []
        """What is to be said of its guest, where that could not be said above the tests."""
        self.slow = ""
        """Why it is no copy of a frozen guest, for people; "" where it is one."""
        self.kept = ""
        """The name of the VM, where it has been left running."""
        self._wanted = wanted
        self._settings = settings
        self._wish = wish
        self._guests = guests
        self._held = contextlib.ExitStack()
        self._interrupter = Interrupter()
        self._session: DebugSession | None = None
        self._watch: Watch | None = None
        self._watching = contextlib.ExitStack()
        self._until: Deadline | None = None
        self._failed = False
        self._explained: int | None = None
        self._sections: list[tuple[str, str]] = []

    @property
    def session(self) -> DebugSession:
        """The session on the guest; neither its console nor its GDB is open before somebody asks."""
        if self._session is None:
            raise UsageError("the test's guest has ended")
        return self._session

    def start(self) -> None:
        """Start the guest, and watch it.

        Raises:
            VmdebugError: it does not start, or does not come to its shell.
        """
        self._held.enter_context(self._interrupter)
        spec = self._wanted.spec
        if not spec.halt:
            found = self._guests.template(self._wanted, lost=self._lost)
            if found.how != "clone":
                self.slow = f"{spec.guest}: each test's guest comes by {found.how}: {found.reason}"
        guest = self._guests.guest(self._wanted, lost=self._lost)
        self._session = DebugSession(guest.vm, owned=False, preloaded=guest.preloaded)
        if guest.preloaded is not None:
            self._held.push(guest.preloaded)
        self._held.callback(self._end)
        self._held.enter_context(self._watching)
        self._look_after(guest.vm)
        self._session.restarted = self._restarted
        self.arm()

    def arm(self) -> None:
        """From here on the guest's failure ends what the test does, and so does its timeout."""
        if self._watch is None:
            return
        timeout = self._settings.timeout if self._wish.timeout is None else self._wish.timeout
        self._until = Deadline.after(timeout) if timeout else None
        self._watch.until(self._until)
        self._interrupter.arm()

    def attach(self, *, halted: bool = False) -> Gdb:
        """Return GDB, attached, which stops the guest unless that was done.

        Args:
            halted: Whether the guest has to be at the reset vector.

        Raises:
            UsageError: it has booted.
            VmdebugError: see `DebugSession.gdb`.
        """
        if halted and not self._wanted.spec.halt:
            raise UsageError(
                "halted_session wants a guest at the reset vector, and this test's has booted",
                hint="name it among the test's arguments, or mark the test: @pytest.mark.vmdebug(halt=True)",
            )
        return self.session.gdb

    def disarm(self) -> None:
        """What the test does is not ended any more."""
        self._interrupter.disarm()
        self._until = None
        if self._watch is not None:
            self._watch.until(None)

    def check(self) -> None:
        """Fail the test by what its guest has done, unless it has failed by that already.

        Raises:
            GuestFailure: the guest has failed; also where the test has caught it.
        """
        __tracebackhide__ = True
        failure = None if self._watch is None else self._watch.failure()
        if failure is not None:
            raise failure

    def judged(self, error: BaseException) -> BaseException:
        """Return what a test fails by that an error has ended.

        That is its guest's failure in place of an error of ours that is its consequence, for it says more,
        and in place of a skip; where the test stood it has from there.

        Args:
            error: What was raised; where it tells of the guest's failure, that is settled.
        """
        failure = None if self._watch is None else self._watch.failure()
        if self._watch is None or failure is None:
            return error
        told = _tells(error, failure) and not isinstance(error, pytest.skip.Exception)
        replaced = not told and isinstance(error, (VmdebugError, pytest.skip.Exception))
        if told or replaced:  # else it is told at the test's end
            self._watch.settled()
        return failure.with_traceback(error.__traceback__) if replaced else error

    @property
    def told(self) -> bool:
        """Whether there is a report that no report of the test has so far."""
        return bool(self._sections)

    def explain(self) -> list[tuple[str, str]]:
        """Return the sections of a failed test's report that none of its reports had so far."""
        self.gather()
        found, self._sections = self._sections, []
        return found

    def gather(self) -> None:
        """Collect a failed test's report while its guest is there; it is written to the artifacts too.

        What the test fails by later has a report only if the kernel has complained once more.
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
        """End the guest, unless its test failed and it is to be kept."""
        self.disarm()
        self._held.close()

    def _look_after(self, vm: Vm) -> None:
        watch = Watch(vm, allow=self._wish.allow, alarm=self._interrupter.interrupt)
        self._watch = self._watching.enter_context(watch)

    def _restarted(self) -> None:
        """Watch the VM that has taken the place of the test's."""
        self.check()
        self._watching.close()
        self._look_after(self.session.vm)
        if self._watch is not None:
            self._watch.until(self._until)

    def _lost(self, vm: Vm) -> None:
        """Collect the report about a guest that does not come to its shell, before it is ended."""
        self._failed = True
        with contextlib.suppress(VmdebugError, OSError):  # what led here is what the test fails by
            with Watcher(vm.rundir.console_log) as console:
                troubles = console.settle(Deadline.after(SETTLE_SECONDS))
            self._sections = self._collect(DebugSession(vm, owned=False), troubles)
            self._keep(vm)

    def _end(self) -> None:
        session, self._session, self._watch = self.session, None, None
        try:
            session.close()
        finally:
            if not self._keep(session.vm):
                session.vm.stop(force=True)

    def _keep(self, vm: Vm) -> bool:
        """Leave a failed test's VM running, where that is wished and it runs; say whether."""
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
            return [("vmdebug: no report", str(error))]
        found = [(f"vmdebug: {section.title}", section.text) for section in report.sections]
        return found if folder is None else [*found, ("vmdebug: artifacts", str(folder))]

    def _folder(self) -> Path | None:
        top = self._settings.artifacts
        return None if top is None else top / folder_name(self._wanted.test)


def _tells(error: BaseException | None, failure: GuestFailure) -> bool:
    """Whether an error is a failure, or was raised while that was on its way out of the test."""
    if error is None or error is failure:
        return error is failure
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return _tells(error.__context__, failure) or any(_tells(part, failure) for part in parts)


def _empty(folder: Path) -> None:
    """Make a test's folder; what an earlier failure left in it is not of this one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("*.txt"), folder / "vmcore"]:
        path.unlink(missing_ok=True)


def folder_name(test: str) -> str:
    """Return a directory's name for a test; another one for each.

    Args:
        test: Its node id.
    """
    plain = re.sub(r"[/\\]|::|\[", "-", test).removesuffix("]")
    name = re.sub(r"[^A-Za-z0-9_.+=,-]+", "_", plain)[:_FOLDER_CHARACTERS]
    # What had to be changed may be another test's name: told apart by a sum.
    return name if name == plain else f"{name}-{zlib.crc32(test.encode()):08x}"
