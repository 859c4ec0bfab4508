"""The guests of a test run: resolved once, booted once, and then copied."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
from typing import TypeVar

import msgspec

from vmdebug import sources, vm
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.guest import GuestOptions, LaunchSpec
from vmdebug.progress import Report, Step
from vmdebug.session import BUILD_SECONDS, LAUNCH_SECONDS
from vmdebug.vm.template import Template, template

_NAME_CHARACTERS = 20
"""Of a test's name that its VM's has: sockets' paths are short."""


class Guests:
    """What one pytest process has of guests; `close` lets go of it.

    What fails once, fails for every test alike, and at once: a guest that never boots costs its timeout
    one time.

    Args:
        report: Told what takes long.
        boot_seconds: How long a guest may take to its shell.
    """

    def __init__(self, report: Report, *, boot_seconds: float) -> None:
        self._report = report
        self._boot_seconds = boot_seconds
        self._held = contextlib.ExitStack()
        self._specs: dict[GuestOptions, LaunchSpec | VmdebugError] = {}
        self._templates: dict[LaunchSpec, Template | VmdebugError] = {}
        self._numbers = itertools.count(1)

    def spec(self, options: GuestOptions) -> LaunchSpec:
        """Return everything that is needed to start a guest.

        Raises:
            VmdebugError: see `vmdebug.sources.resolve`.
        """
        if options not in self._specs:
            try:
                self._specs[options] = sources.resolve(
                    options, report=self._report, deadline=Deadline.after(BUILD_SECONDS)
                )
            except VmdebugError as error:
                self._specs[options] = error
        return _or_raise(self._specs[options])

    def template(self, spec: LaunchSpec) -> Template:
        """Return the frozen guest that a spec's VMs are copies of, or what stands in for it.

        Raises:
            VmdebugError: see `vmdebug.vm.template.template`.
        """
        if spec not in self._templates:
            self._report(Step("booting the guest that tests get copies of", note=spec.guest))
            try:
                self._templates[spec] = self._held.enter_context(
                    template(spec, report=self._report, deadline=Deadline.after(self._boot_seconds))
                )
            except VmdebugError as error:
                self._templates[spec] = error
        return _or_raise(self._templates[spec])

    def booted(self, spec: LaunchSpec, *, test: str) -> vm.Vm:
        """Return a new VM at its shell.

        Args:
            spec: What to start.
            test: Whose it is, for its name.

        Raises:
            VmdebugError: see `vmdebug.vm.template.Template.clone`.
        """
        found = self.template(spec)
        return found.clone(
            name=self._name(test), report=self._report, deadline=Deadline.after(self._boot_seconds)
        )

    def halted(self, spec: LaunchSpec, *, test: str) -> vm.Vm:
        """Return a new VM at the reset vector; see `booted`."""
        named = msgspec.structs.replace(spec, name=self._name(test))
        return vm.launch(named, bound=True, report=self._report, deadline=Deadline.after(LAUNCH_SECONDS))

    def close(self) -> None:
        """Let go of the templates."""
        self._held.close()
        self._templates.clear()

    def _name(self, test: str) -> str:
        # The pid tells runs and workers apart, the number tells one run's tests apart.
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", test)[:_NAME_CHARACTERS].strip(".-_") or "test"
        return f"{plain}-{os.getpid()}.{next(self._numbers)}"


T = TypeVar("T")


def _or_raise(found: T | VmdebugError) -> T:
    if isinstance(found, VmdebugError):
        # A copy: each raising adds to its traceback.
        raise copy.copy(found)
    return found
