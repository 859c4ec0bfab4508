"""The guest of a hunt whose CPUs are held: booted once with several CPUs, and copied for each run.

Its CPUs run at the same time, each in a thread of QEMU, so there is no count of instructions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import msgspec

from vmdebug.deadline import BOOT_SECONDS, LAUNCH_SECONDS, Deadline
from vmdebug.debugger.ownership import VmOwner
from vmdebug.errors import GdbError, UsageError
from vmdebug.guest import LaunchSpec
from vmdebug.hunting import holds
from vmdebug.hunting.guest import Prepare
from vmdebug.hunting.holder import Holder, Point
from vmdebug.hunting.hunted_session import HuntedSession
from vmdebug.hunting.schedule import Schedule
from vmdebug.hunting.stub import Stub
from vmdebug.progress import silent
from vmdebug.session import DebugSession
from vmdebug.spelling import option
from vmdebug.vm import launching, planning, wait_shell
from vmdebug.vm.clones import build, saved_guest
from vmdebug.vm.clones.saved_guest import SavedGuest
from vmdebug.vm.machine import Vm

POINTS_SECONDS = 120.0
"""How long GDB may take to find the points."""


def with_cpus(spec: LaunchSpec, cpus: int) -> LaunchSpec:
    """Return a spec whose guest has several CPUs and can be copied.

    Raises:
        UsageError: such a guest cannot.
    """
    if spec.accel == "kvm" or spec.kernel.arch != "x86_64":
        raise UsageError(
            "CPUs are only held under TCG, on x86_64",
            hint=f"take a guest of x86_64, and leave out {option('accel', 'kvm')}",
        )
    if reason := build.obstacle(spec):
        raise UsageError(
            f"the guest {spec.guest} cannot be copied: {reason}",
            hint="take the builtin guest, a kernel tree or an image, without disks and shared directories",
        )
    return msgspec.structs.replace(
        spec, accel="tcg", cpus=cpus, halt=False, trace_ready="no", tcp=None, notes=()
    )


class HeldGuest:
    """A guest that is copied for each run; a context manager.

    Args:
        spec: The guest.
        cpus: How many CPUs it has.
        points: Where its CPUs are held, as GDB takes a place: functions, FILE:LINE. Without any, they run.
        prepare: Called with the session of the booted guest before it is saved, or None.
    """

    def __init__(
        self, spec: LaunchSpec, *, cpus: int, points: Sequence[str], prepare: Prepare | None = None
    ) -> None:
        self._spec = with_cpus(spec, cpus)
        self._cpus = cpus
        self._names = points
        self._prepare = prepare
        self._held = contextlib.ExitStack()
        self._points: tuple[Point, ...] = ()
        self._saved: SavedGuest | None = None

    def __enter__(self) -> Self:
        """Boot the guest, find the points, and save it.

        Raises:
            VmdebugError: as `vmdebug.start` does; or a point is not in the kernel.
        """
        spec = self._spec
        deadline = Deadline.after(LAUNCH_SECONDS + BOOT_SECONDS + POINTS_SECONDS)
        found = planning.resources(spec, report=silent, deadline=deadline)
        with contextlib.ExitStack() as files:
            saved = saved_guest.new(files, spec, found, name=spec.name)
            with launching.launch(
                spec,
                bound=True,
                exact_name=False,
                start=saved_guest.booting(saved),
                timeout=deadline.left(launching.ANSWER),
            ) as vm:
                self._ready(vm, deadline)
                saved_guest.keep(vm, saved, deadline=deadline)
            self._saved = saved
            self._held = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @contextlib.contextmanager
    def session(self, schedule: Schedule) -> Iterator[HuntedSession]:
        """Copy the guest for a block, and hold its CPUs as the seed says."""
        assert self._saved is not None  # noqa: S101 - entered
        deadline = Deadline.after(LAUNCH_SECONDS)
        with saved_guest.start(
            self._saved, name=self._spec.name, bound=True, run=not self._points, deadline=deadline
        ) as vm:
            if not self._points:
                yield HuntedSession(vm)
                return
            wanted = holds.of_seed(schedule.seed, points=len(self._points), cpus=self._cpus)
            with (
                VmOwner.claim(vm.rundir.attach_lock, vm.name),
                Stub(vm.rundir.gdb, deadline=deadline) as stub,
                Holder(stub, self._points, wanted, cpus=self._cpus) as holder,
            ):
                yield HuntedSession(vm, holds=holder.done)

    def _ready(self, vm: Vm, deadline: Deadline) -> None:
        """Wait for the guest's shell, prepare the guest, and find the points in it."""
        wait_shell.wait(vm, copy=False, deadline=deadline)
        with DebugSession(vm, owned=False) as session:
            if self._prepare is not None:
                self._prepare(session)
            if self._names:
                self._points = tuple(_point(session, name) for name in self._names)


def _point(session: DebugSession, name: str) -> Point:
    try:
        with session.gdb.breakpoint(name) as place:
            return Point(name, place.addresses)
    except GdbError as error:
        raise UsageError(
            f"{option('hold', name)}: {error.message}",
            hint="name a function or FILE:LINE of the kernel, or of a module that is loaded before the guest"
            f" is copied: by {option('module')}, or in the script's prepare(session)",
        ) from error
