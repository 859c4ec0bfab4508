"""The guests of a test run: resolves and boots each one once, and clones it for each test."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import msgspec

from vmdebug import addressing, sources, vm
from vmdebug.attaching import ATTACH_SECONDS
from vmdebug.deadline import BUILD_SECONDS, Deadline
from vmdebug.debugger.preloaded import PreloadedGdb
from vmdebug.errors import VmdebugError
from vmdebug.guest import LaunchSpec, OwnMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.network import Nic
from vmdebug.plugin.prewarm import Prewarmer
from vmdebug.progress import Report, Step, silent
from vmdebug.recording import store
from vmdebug.vm import wait_shell
from vmdebug.vm.clones import prewarmed
from vmdebug.vm.clones.template import Template, template
from vmdebug.vm.launching import Start

_NAME_CHARACTERS = 20
"""How many characters of a test's name to use in its VM's name; the path of a socket must be short."""

_HOLD_SECONDS = 10.0

Lost = Callable[[vm.Vm], None]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The guest of one test.

    Args:
        test: The test's node id.
        name: The test's name, from which the VM gets its name.
        spec: What to start.
        gdb: Whether one of the test's fixtures attaches GDB.
        count: The number of guests.
    """

    test: str
    name: str
    spec: LaunchSpec
    gdb: bool
    count: int = 1


class Guest(NamedTuple):
    """A VM and, if the test needs it, a GDB that is already loading its symbols."""

    vm: vm.Vm
    preloaded: PreloadedGdb | None

    def end(self) -> None:
        """End both."""
        try:
            self.vm.stop(force=True)
        finally:
            if self.preloaded is not None:
                self.preloaded.close()


class Guests:
    """The guests of one pytest process; `close` ends them.

    If a guest does not boot for one test, later tests of that guest fail at once, without another timeout.

    Args:
        report: Called with each long step.
        boot_seconds: How long a guest may take until its shell answers.
    """

    def __init__(self, report: Report, *, boot_seconds: float) -> None:
        self._report = report
        self._boot_seconds = boot_seconds
        self._held = contextlib.ExitStack()
        self._specs: dict[GuestOptions, LaunchSpec | VmdebugError] = {}
        self._templates: dict[LaunchSpec, Template | VmdebugError] = {}
        self._numbers = itertools.count(1)
        self._prewarmer: Prewarmer[Wanted, Guest] = Prewarmer(self._prewarmed, end=Guest.end)

    def known(self, options: GuestOptions) -> LaunchSpec | None:
        """Return what `spec` returned before; None if it was not called, or raised."""
        found = self._specs.get(options)
        return found if isinstance(found, LaunchSpec) else None

    def spec(self, options: GuestOptions) -> LaunchSpec:
        """Return the spec of a guest with throwaway disks.

        Raises:
            VmdebugError: see `vmdebug.sources.resolve`.
        """
        if options not in self._specs:
            try:
                found = sources.resolve(options, report=self._report, deadline=Deadline.after(BUILD_SECONDS))
                self._specs[options] = _with_throwaway_disk(found)
            except VmdebugError as error:
                self._specs[options] = error
        return _or_raise(self._specs[options])

    def template(self, wanted: Wanted, *, lost: Lost | None = None) -> Template:
        """Return the template for a test's VM; make it at the first call.

        Args:
            wanted: The guest of the test.
            lost: Called with a VM whose shell does not answer, before the VM is ended.

        Raises:
            VmdebugError: see `vmdebug.vm.template`.
        """
        spec = wanted.spec
        if spec not in self._templates:
            self._report(Step("booting the guest that tests get clones of", note=spec.guest))
            try:
                self._templates[spec] = self._held.enter_context(
                    template(spec, lost=lost, report=self._report, timeout=self._boot_seconds)
                )
            except VmdebugError as error:
                self._templates[spec] = _for_later_tests(error, wanted.test)
                raise
        return _or_raise(self._templates[spec])

    def guest(self, wanted: Wanted, *, beside: vm.Vm | None = None, lost: Lost | None = None) -> Guest:
        """Return a guest of a test, at its shell, or at the reset vector if its spec says so.

        Args:
            wanted: The guest.
            beside: The test's first guest, whose segments it joins; None: it is the first one itself.
            lost: See `template`.

        Raises:
            VmdebugError: see `vmdebug.vm.Template.clone` and `vmdebug.vm.launch`.
        """
        if beside is not None:
            other = msgspec.structs.replace(wanted, gdb=False)
            return self._started(other, beside=beside, lost=lost, report=self._report)
        return self._take_prewarmed(wanted) or self._started(wanted, lost=lost, report=self._report)

    def begin(self, wanted: Wanted) -> None:
        """Start the guest of the next test in advance, if that is quick: a halted guest, or a clone.

        If a guest was started in advance for another test, end it.
        """
        if wanted.spec.record is None and (wanted.spec.halt or self._cloned(wanted.spec)):
            self._prewarmer.begin(wanted)

    def close(self) -> None:
        """End the templates, and a guest that no test has used."""
        try:
            self._prewarmer.close()
        finally:
            self._held.close()
            self._templates.clear()

    def _cloned(self, spec: LaunchSpec) -> bool:
        found = self._templates.get(spec)
        return isinstance(found, Template) and found.how == "clone"

    def _started(
        self,
        wanted: Wanted,
        *,
        beside: vm.Vm | None = None,
        report: Report,
        lost: Lost | None = None,
        early: bool = False,
    ) -> Guest:
        name = self._name(wanted.name)
        # Tests that run at the same time must not share a segment.
        scope = addressing.scope(beside.state.spec.nics) if beside is not None else name.rpartition("-")[2]
        nics = addressing.scoped(wanted.spec.nics, scope)
        with contextlib.ExitStack() as protected:
            preloaded = None
            if wanted.gdb:
                preloaded = PreloadedGdb.start(wanted.spec.kernel, timeout=ATTACH_SECONDS)
                protected.enter_context(preloaded)
            if wanted.spec.record is not None:
                machine = self._recorded(wanted, name, nics, lost=lost, report=report)
            elif wanted.spec.halt:
                machine = self._halted(wanted, name, nics, early=early, report=report)
            else:
                machine = self._booted(wanted, name, nics, lost=lost, early=early, report=report)
            guest = Guest(machine, preloaded)
            protected.pop_all()
        return guest

    def _prewarmed(self, wanted: Wanted) -> Guest:
        guest = self._started(wanted, report=silent, early=True)
        with _ended_on_error(guest):
            prewarmed.pause(guest.vm, deadline=Deadline.after(_HOLD_SECONDS))
        return guest

    def _take_prewarmed(self, wanted: Wanted) -> Guest | None:
        """Return the test's guest if it was started in advance; None if it was not, or that failed."""
        with contextlib.suppress(VmdebugError):
            guest = self._prewarmer.take(wanted)
            if guest is not None:
                with _ended_on_error(guest):
                    prewarmed.resume(guest.vm, deadline=Deadline.after(_HOLD_SECONDS))
            return guest
        return None

    def _booted(
        self,
        wanted: Wanted,
        name: str,
        nics: tuple[Nic, ...],
        *,
        lost: Lost | None,
        early: bool,
        report: Report,
    ) -> vm.Vm:
        return self.template(wanted).clone(
            name=name,
            nics=nics,
            hostname=name if wanted.count > 1 else "",
            prewarmed=early,
            lost=lost,
            report=report,
            timeout=self._boot_seconds,
        )

    def _halted(
        self, wanted: Wanted, name: str, nics: tuple[Nic, ...], *, early: bool, report: Report
    ) -> vm.Vm:
        return vm.launch(
            msgspec.structs.replace(wanted.spec, name=name, nics=nics),
            bound=True,
            report=report,
            start=Start(prewarmed=early),
        )

    def _recorded(
        self, wanted: Wanted, name: str, nics: tuple[Nic, ...], *, lost: Lost | None, report: Report
    ) -> vm.Vm:
        """Return a guest with a recording of its own; it boots, because a clone cannot be recorded."""
        place = store.place("", name)
        spec = msgspec.structs.replace(wanted.spec, name=name, nics=nics, record=place)
        machine = vm.launch(spec, bound=True, report=report)
        if not spec.halt:
            try:
                wait_shell.wait(machine, copy=False, lost=lost, deadline=Deadline.after(self._boot_seconds))
            except BaseException:
                machine.stop(force=True)
                store.delete(place)
                raise
        return machine

    def _name(self, test: str) -> str:
        # The pid differs between runs and workers, the number between the tests of a run.
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", test)[:_NAME_CHARACTERS].strip(".-_") or "test"
        return f"{plain}-{os.getpid()}.{next(self._numbers)}"


def _with_throwaway_disk(spec: LaunchSpec) -> LaunchSpec:
    """Return the spec with a throwaway disk, so that no test sees what another test has written."""
    if not isinstance(spec.machine, OwnMachine) or spec.machine.disk is None:
        return spec
    return msgspec.structs.replace(spec, machine=msgspec.structs.replace(spec.machine, throwaway=True))


@contextlib.contextmanager
def _ended_on_error(guest: Guest) -> Iterator[None]:
    try:
        yield
    except BaseException:
        guest.end()
        raise


def _for_later_tests(error: VmdebugError, test: str) -> VmdebugError:
    """Return the error for later tests, which refer to the first one's report."""
    short = copy.copy(error)
    short.hint, short.detail = f"see the report of {test}, the first test that needed this guest", ""
    return short


T = TypeVar("T")


def _or_raise(found: T | VmdebugError) -> T:
    if isinstance(found, VmdebugError):
        # A copy: every raise adds to the traceback of an exception.
        raise copy.copy(found)
    return found
