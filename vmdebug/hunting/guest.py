"""The guest of a hunt: booted once to its agent, saved, and continued under each schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from vmdebug.deadline import BOOT_SECONDS, LAUNCH_SECONDS, Deadline
from vmdebug.debugger.ownership import VmOwner
from vmdebug.errors import UsageError
from vmdebug.guest import LaunchSpec, OwnMachine
from vmdebug.hunting import schedule as schedules
from vmdebug.hunting.hunted_session import SteppedSession
from vmdebug.hunting.mailbox import Mailbox, Piece
from vmdebug.hunting.schedule import Schedule
from vmdebug.hunting.stepped_shell import SteppedGuestShell, SteppedShell
from vmdebug.hunting.stub import Stub
from vmdebug.recording import refusal
from vmdebug.session import DebugSession
from vmdebug.spelling import option
from vmdebug.vm import guest_status, launching, memfd, planning, record_log, recorder
from vmdebug.vm.clones import build, saved_guest
from vmdebug.vm.clones.saved_guest import SavedGuest
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.planning import Resources

_DEBUG, _PAUSED = b"debug\0", b"paused\0"
"""Names of QEMU's run states, as a saved state has them."""

Prepare = Callable[[DebugSession], object]

STEPS = "vmdebug.steps"
"""The kernel parameter that makes the agent use its mailbox."""

BOOT = Schedule(seed=1)
"""The schedule of the template."""


def scheduled(spec: LaunchSpec, schedule: Schedule) -> LaunchSpec:
    """Return a spec whose guest runs by a schedule.

    Raises:
        UsageError: such a guest cannot.
    """
    if not isinstance(spec.machine, OwnMachine) or not spec.machine.own_init or spec.kernel.arch != "x86_64":
        raise UsageError(
            f"the guest {spec.guest} cannot be hunted: its initramfs is not vmdebug's, or it is not x86_64",
            hint="take the builtin guest, a kernel tree or an image of x86_64; its root may be any",
        )
    if spec.accel == "kvm":
        raise UsageError(
            "a hunt counts instructions, which only TCG can", hint=f"leave out {option('accel', 'kvm')}"
        )
    if spec.cpus not in (None, 1):
        raise UsageError(
            f"a hunt counts the instructions of one CPU, and the guest has {spec.cpus}",
            hint=f"leave out {option('cpus', spec.cpus)}",
        )
    for share in spec.shared:
        raise UsageError(
            f"the directory {share.directory} is shared with this machine, which answers at its own time",
            hint="copy what the workload needs in the script's prepare(session): session.put(…)",
        )
    return msgspec.structs.replace(
        spec,
        accel="tcg",
        halt=True,
        trace_ready="no",
        tcp=None,
        parameters=(*spec.parameters, STEPS),
        qemu_args=(*spec.qemu_args, *schedules.qemu_arguments(schedule)),
    )


class HuntedGuest:
    """A guest that continues from its boot under each schedule; a context manager.

    Args:
        spec: The guest.
        prepare: Called with the session of the booted guest before it is saved, or None.
    """

    def __init__(self, spec: LaunchSpec, prepare: Prepare | None = None) -> None:
        self._spec = spec
        self._prepare = prepare
        self._held = contextlib.ExitStack()
        self._saved: SavedGuest | None = None
        self._resources: Resources | None = None

    def __enter__(self) -> Self:
        """Boot the guest and save it.

        Raises:
            VmdebugError: as `vmdebug.start` does, or the guest has no agent.
        """
        spec = scheduled(self._spec, BOOT)
        deadline = Deadline.after(LAUNCH_SECONDS + BOOT_SECONDS)
        found = planning.resources(spec, report=lambda _: None, deadline=deadline)
        # Their random numbers come at the host's time, or from the host.
        features = msgspec.structs.replace(found.features, rng=False, vmgenid=False, virtio_serial=False)
        self._resources = msgspec.structs.replace(found, features=features)
        if not build.obstacle(self._spec):
            with contextlib.ExitStack() as files:
                saved = saved_guest.new(files, spec, self._resources, name=spec.name)
                self._save(saved, deadline)
                self._saved, self._held = saved, files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @contextlib.contextmanager
    def session(self, schedule: Schedule) -> Iterator[SteppedSession]:
        """Continue the guest under a schedule for a block; it boots if it cannot be saved."""
        spec = scheduled(self._spec, schedule)
        deadline = Deadline.after(LAUNCH_SECONDS + BOOT_SECONDS)
        if self._saved is None:
            with self._launched(spec, schedule, Start(resources=self._resources), deadline) as session:
                if self._prepare is not None:
                    self._prepare(session)
                yield session
            return
        saved = msgspec.structs.replace(self._saved, spec=spec)
        vm = saved_guest.start(saved, name=spec.name, bound=True, run=False, deadline=deadline)
        with vm, _stepped(vm, schedule, deadline) as (session, _):
            yield session

    @contextlib.contextmanager
    def recorded(
        self, schedule: Schedule, pieces: Sequence[Piece], directory: Path
    ) -> Iterator[SteppedSession]:
        """Continue the guest under a schedule for a block, and record it.

        QEMU does not log what is written to memory. So the guest begins with all input of the run, which is
        known from a run before.

        Args:
            schedule: The schedule.
            pieces: What the host gave the guest in that run; the block must give the same.
            directory: The recording that is made.

        Raises:
            UsageError: the guest cannot be recorded.
            VmError: the guest cannot be saved, or gets more input than fits.
        """
        refusal.check(msgspec.structs.replace(self._spec, record=directory))
        if self._saved is None:
            raise UsageError(f"it cannot be recorded: {build.obstacle(self._spec)}")
        deadline = Deadline.after(LAUNCH_SECONDS + BOOT_SECONDS)
        with contextlib.ExitStack() as held:
            state = memfd.closed_by(held, memfd.create("state"))
            self._save_with(pieces, state, deadline)
            form = record_log.of(self._saved.resources.qemu, deadline=deadline)
            spec = msgspec.structs.replace(scheduled(self._spec, schedule), record=directory)
            resources = msgspec.structs.replace(self._saved.resources, record=form)
            saved = msgspec.structs.replace(
                self._saved, spec=spec, resources=resources, ram=None, state=state
            )
            vm = held.enter_context(
                saved_guest.start(saved, name=spec.name, bound=True, run=False, deadline=deadline)
            )
            recorder.keep_state(directory, state, vm.qmp("query-replay")["icount"])
            session, _ = held.enter_context(_stepped(vm, schedule, deadline, pieces))
            yield session

    def _save_with(self, pieces: Sequence[Piece], into: int, deadline: Deadline) -> None:
        """Save the guest with its memory, and with the input of a run."""
        assert self._saved is not None  # noqa: S101 - checked by the caller
        vm = saved_guest.start(self._saved, name=self._spec.name, bound=True, run=False, deadline=deadline)
        with vm:
            with Stub(vm.rundir.gdb, deadline=deadline) as stub:
                Mailbox(stub).write(pieces, deadline=deadline)
            saved_guest.save(vm, into, shared=False, deadline=deadline)
        memfd.write(into, as_paused(memfd.read(into)))

    @contextlib.contextmanager
    def _launched(
        self, spec: LaunchSpec, schedule: Schedule, start: Start, deadline: Deadline
    ) -> Iterator[SteppedSession]:
        with (
            launching.launch(
                spec, bound=True, exact_name=False, start=start, timeout=deadline.left(launching.ANSWER)
            ) as vm,
            _stepped(vm, schedule, deadline) as (session, shell),
        ):
            shell.wait_stop(deadline, "the agent in the guest")
            yield session

    def _save(self, into: SavedGuest, deadline: Deadline) -> None:
        with self._launched(into.spec, BOOT, saved_guest.booting(into), deadline) as session:
            if self._prepare is not None:
                self._prepare(session)
            saved_guest.keep(session.vm, into, deadline=deadline)
        memfd.write(into.state, as_paused(memfd.read(into.state)))


def as_paused(state: bytes) -> bytes:
    """Return a saved state with the run state "paused".

    A guest that its gdbstub has stopped is saved as "debug", a state that QEMU refuses to enter from a load:
    see `runstate_transitions_def` of softmmu/runstate.c. `vmstate_globalstate` of migration/global_state.c
    defines the format: the length of the name, then the name in 100 bytes.
    """
    start = state.find(b"globalstate")
    length = (len(_DEBUG)).to_bytes(4, "big")
    at = state.find(length + _DEBUG, start) if start >= 0 else -1
    if at < 0:
        return state
    paused = len(_PAUSED).to_bytes(4, "big") + _PAUSED
    return state[:at] + paused + state[at + len(paused) :]


@contextlib.contextmanager
def _stepped(
    vm: Vm, schedule: Schedule, deadline: Deadline, known: Sequence[Piece] | None = None
) -> Iterator[tuple[SteppedSession, SteppedShell]]:
    """Connect to the gdbstub of a stopped VM, and give the VM a stepped shell."""
    with (
        VmOwner.claim(vm.rundir.attach_lock, vm.name),
        Stub(vm.rundir.gdb, deadline=deadline) as stub,
    ):
        mailbox = Mailbox(stub, known)
        mailbox.watch(deadline=deadline)

        def cause() -> str:
            return guest_status.cause_of_death(vm.status())

        shell = SteppedShell(stub, mailbox, schedule, cause=cause)
        vm.shell = SteppedGuestShell(shell, ways=vm.rundir.ways, check=lambda: None, cause=cause)
        yield SteppedSession(vm, given=mailbox.given), shell
