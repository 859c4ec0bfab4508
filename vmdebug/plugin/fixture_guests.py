"""The guests of one test: one, or several on a network segment, which are watched and reported together."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmdebug.debugger.gdb import Gdb
from vmdebug.plugin.fixture_guest import FixtureGuest
from vmdebug.plugin.guests import Guests, Wanted
from vmdebug.plugin.main_thread import MainThreadInterrupt
from vmdebug.plugin.markers import Marker
from vmdebug.plugin.settings import Settings
from vmdebug.session import DebugSession

if TYPE_CHECKING:
    from vmdebug.plugin.coverage import TestCoverage


class FixtureGuests:
    """The guests of one test; the first one is that of the fixtures `vm`, `session`, `console` and `gdb`.

    Args:
        wanted: The guests to start.
        settings: The settings of the test run.
        marker: The test's marker.
        guests: Starts guests.
        covers: Records which code the guests execute, or None.
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        settings: Settings,
        marker: Marker,
        guests: Guests,
        covers: TestCoverage | None = None,
    ) -> None:
        self.header: list[str] = []
        """Header lines about the guests, if they could not be printed before the tests."""
        self._interrupter = MainThreadInterrupt()
        self._held = contextlib.ExitStack()
        self._members = [
            FixtureGuest(
                wanted,
                settings=settings,
                marker=marker,
                guests=guests,
                interrupter=self._interrupter,
                covers=covers,
                label=f"guest-{number}" if wanted.count > 1 else "",
            )
            for number in range(1, wanted.count + 1)
        ]

    @property
    def first(self) -> FixtureGuest:
        """The first guest."""
        return self._members[0]

    @property
    def session(self) -> DebugSession:
        """The session on the first guest.

        Raises:
            UsageError: it has ended.
        """
        return self._members[0].session

    @property
    def sessions(self) -> tuple[DebugSession, ...]:
        """The sessions on all guests.

        Raises:
            UsageError: a guest has ended.
        """
        return tuple(each.session for each in self._members)

    @property
    def slow(self) -> str:
        """Why the guests are not clones; "" if they are."""
        return self._members[0].slow

    @property
    def kept(self) -> str:
        """The names of the VMs that are left running after the test; or ""."""
        return " ".join(each.kept for each in self._members if each.kept)

    def start(self) -> None:
        """Start the guests, and watch them.

        Raises:
            VmdebugError: one does not start, or its shell does not answer.
        """
        self._held.enter_context(self._interrupter)
        first, *others = self._members
        self._held.callback(first.close)
        first.start()
        for each in others:
            self._held.callback(each.close)
            each.start(beside=first.session.vm)

    def arm(self) -> None:
        """From now on, fail the test as soon as a guest fails or the test's timeout passes."""
        for each in self._members:
            each.arm()

    def attach(self, *, halted: bool = False) -> Gdb:
        """Return GDB, attached to the first guest; see `FixtureGuest.attach`."""
        return self._members[0].attach(halted=halted)

    def disarm(self) -> None:
        """No longer interrupt the test when a guest fails or its timeout passes."""
        for each in self._members:
            each.disarm()

    def check(self, *, look: bool = False) -> None:
        """Fail the test if a guest has failed; see `FixtureGuest.check`."""
        __tracebackhide__ = True
        for each in self._members:
            each.check(look=look)

    def find_leaks(self) -> None:
        """Look for leaks of the test; see `FixtureGuest.find_leaks`."""
        __tracebackhide__ = True
        for each in self._members:
            each.find_leaks()

    def judged(self, error: BaseException) -> BaseException:
        """Return the error that an interrupted test fails with; see `FixtureGuest.judged`."""
        for each in self._members:
            if (found := each.judged(error)) is not error:
                return found
        return error

    @property
    def has_sections(self) -> bool:
        """Whether sections are waiting for the test's next report."""
        return any(each.has_sections for each in self._members)

    def explain(self) -> list[tuple[str, str]]:
        """Return the report sections of a failed test; each one only once."""
        self.gather()
        return [section for each in self._members for section in each.explain()]

    def gather(self) -> None:
        """Collect the reports of a failed test while its guests exist."""
        self.disarm()
        for each in self._members:
            each.gather()

    def close(self) -> None:
        """End the guests, unless the test failed and `keep` is set."""
        self.disarm()
        self._held.close()
