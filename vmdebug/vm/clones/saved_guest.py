"""Saves a guest's memory and devices to files, and starts VMs that continue from them.

Each clone maps the file with the RAM privately: the kernel copies a page when a clone writes to it, and the
clones share all others. `migrate` with `x-ignore-shared` saves the state of the devices, a few hundred KB;
see docs/devel/migration of QEMU. If the RAM cannot be shared, the state contains it, and each VM reads it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vmdebug import process
from vmdebug.channel.log import kept
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, QmpError, VmError
from vmdebug.guest import DEFAULT_MEMORY_MIB, LaunchSpec
from vmdebug.network import Nic
from vmdebug.progress import Report, silent
from vmdebug.spelling import option
from vmdebug.vm import launching, memfd, snapshot
from vmdebug.vm.argv import InitialState
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.planning import Resources

if TYPE_CHECKING:
    from vmdebug.vm.qmp import Event, Qmp

IGNORE_SHARED = "x-ignore-shared"

_EVENTS = "events"

_INCOMING = "vmdebug-state"

_ANSWER = "QEMU to answer on QMP"


class SavedGuest(msgspec.Struct, frozen=True, kw_only=True):
    """A saved guest; its owner must call `close`.

    Args:
        spec: The spec of the saved VM.
        resources: The host's resources.
        ram: Descriptor of the file with its RAM; None if the state contains the RAM.
        state: Descriptor of the file with its state.
        log: Descriptor of the file with its console's output.
        name: The name of the saved VM.
    """

    spec: LaunchSpec
    resources: Resources
    ram: int | None
    state: int
    log: int
    name: str

    def close(self) -> None:
        """Close its files. The kernel frees the memory with the last clone that maps it."""
        os.close(self.state)
        os.close(self.log)
        if self.ram is not None:
            os.close(self.ram)


def new(held: contextlib.ExitStack, spec: LaunchSpec, resources: Resources, *, name: str) -> SavedGuest:
    """Make the files for a guest in shared memory; `held` closes them.

    Args:
        held: Has the files.
        spec: The guest.
        resources: The host's resources for it.
        name: The name of the VM that is saved.

    Raises:
        HostError: there is not enough memory.
    """
    return SavedGuest(
        spec=spec,
        resources=resources,
        ram=memfd.closed_by(held, new_ram(spec, None)),
        state=memfd.closed_by(held, memfd.create("state")),
        log=memfd.closed_by(held, memfd.create("log")),
        name=name,
    )


def booting(into: SavedGuest) -> Start:
    """Return how a VM starts whose RAM is in the file for it."""
    fds = () if into.ram is None else (into.ram,)
    return Start(initial=InitialState(ram=into.ram, shared=True), fds=fds, resources=into.resources)


def keep(vm: Vm, into: SavedGuest, *, deadline: Deadline) -> None:
    """Stop a VM that runs in the RAM of a saved guest, and save its state and the console's log.

    Raises:
        VmdebugError: see `save`.
    """
    save(vm, into.state, shared=into.ram is not None, deadline=deadline)
    memfd.write(into.log, kept.read(vm.rundir.console_log).data)


def can_ignore_shared(vm: Vm, *, deadline: Deadline) -> bool:
    """Return whether a VM's QEMU can save a state without shared RAM."""
    with vm.connected(timeout=deadline.left(_ANSWER)) as qmp:
        return _can_ignore_shared(qmp)


def save(vm: Vm, into: int, *, shared: bool, deadline: Deadline) -> None:
    """Stop a VM and save its state.

    Args:
        vm: The VM. It stays stopped.
        into: Descriptor of the file for the state.
        shared: Whether its RAM is in a shared file, and the state must not contain it.
        deadline: When to give up.

    Raises:
        QmpError: QEMU refused: a device of the guest cannot be saved, such as a mounted 9p share.
        VmError: the state could not be written.
        GuestDiedError: QEMU has ended.
        DeadlineError: it took too long.
    """
    with vm.connected(timeout=deadline.left(_ANSWER)) as qmp, qmp.listen("MIGRATION") as events:
        qmp.execute("stop")
        _set_capabilities(qmp, shared=shared)
        try:
            qmp.execute("migrate", {"uri": f"exec:cat >{memfd.path(into)}"})
        except QmpError as error:
            error.hint = error.hint or snapshot.hint_for(error.message)
            raise
        events.next(_moved)
        moved = qmp.execute("query-migrate")
        _wait_finished(qmp, deadline)
    if moved["status"] != "completed":
        why = moved.get("error-desc", "QEMU gives no reason")
        raise VmError(f"the state of {vm.name} could not be saved: {why}")


def start(
    saved: SavedGuest,
    *,
    name: str,
    nics: Sequence[Nic] | None = None,
    bound: bool,
    run: bool = True,
    exact_name: bool = False,
    prewarmed: bool = False,
    report: Report = silent,
    deadline: Deadline,
) -> Vm:
    """Start a VM that continues from a saved guest.

    Args:
        saved: The saved guest.
        name: The VM's name.
        nics: Its network cards, with other connections than the saved guest's; None: those of that.
        run: Whether to set the guest running.
        bound: Whether it ends with this process.
        exact_name: Whether the name must not change; otherwise -2, -3, … is added to one that is taken.
        prewarmed: Whether it is prewarmed; see `vmdebug.vm.clones.prewarmed`.
        report: Called with each step that takes long.
        deadline: When it must run.

    Raises:
        LaunchError: QEMU ended.
        VmError: it cannot load the state.
        DeadlineError: it took too long. In all these cases nothing is left.
    """
    initial = InitialState(ram=saved.ram, incoming=True)
    vm = launching.launch(
        msgspec.structs.replace(
            saved.spec, name=name, halt=False, nics=saved.spec.nics if nics is None else tuple(nics)
        ),
        bound=bound,
        report=report,
        timeout=deadline.left(launching.ANSWER),
        exact_name=exact_name,
        start=Start(
            initial=initial,
            fds=() if saved.ram is None else (saved.ram,),
            log=memfd.read(saved.log),
            resources=saved.resources,
            clone_of=saved.name,
            prewarmed=prewarmed,
        ),
    )
    try:
        load(vm, saved.state, shared=saved.ram is not None, run=run, deadline=deadline)
    except BaseException:
        vm.stop(force=True)
        raise
    return vm


def load(vm: Vm, state: int, *, shared: bool, run: bool = True, deadline: Deadline) -> None:
    """Load a state into a VM that was started with `-incoming`.

    Args:
        vm: The VM.
        state: Descriptor of the file with the state.
        shared: Whether the RAM is in a file, and not in the state.
        run: Whether to set the guest running.
        deadline: When to give up.

    Raises:
        VmError: QEMU cannot load it.
        GuestDiedError: QEMU has ended, for example because the state is from another machine.
        DeadlineError: it took too long.
    """
    with vm.connected(timeout=deadline.left(_ANSWER)) as qmp, qmp.listen("MIGRATION") as events:
        _set_capabilities(qmp, shared=shared)
        with memfd.piped(state) as pipe:
            qmp.execute("getfd", {"fdname": _INCOMING}, fds=[pipe])
            qmp.execute("migrate-incoming", {"uri": f"fd:{_INCOMING}"})
            moved = events.next(_moved)
        if moved.data["status"] != "completed":
            words = vm.rundir.qemu_log.read_text(errors="replace")
            raise VmError(
                f"{vm.name} cannot load the saved state",
                detail=process.tail(words),
            )
        if shared:
            # States that are saved later must contain the RAM.
            _set_capabilities(qmp, shared=False)
        if run:
            qmp.execute("cont")


def memory_mib(spec: LaunchSpec) -> int:
    """Return the RAM of a guest with vmdebug's QEMU command line, in MiB."""
    return spec.memory or DEFAULT_MEMORY_MIB


def new_ram(spec: LaunchSpec, directory: Path | None) -> int:
    """Make a file for a guest's RAM, and return its descriptor.

    Raises:
        HostError: there is not enough space, or the file cannot be made in the directory.
    """
    if missing := memfd.shortage(memory_mib(spec), directory):
        raise HostError(
            missing, hint=f"give the guest less memory: {option('memory')}; or choose another directory"
        )
    ram = memfd.create("ram", directory)
    os.ftruncate(ram, memory_mib(spec) << 20)
    return ram


def _set_capabilities(qmp: Qmp, *, shared: bool) -> None:
    wanted = {_EVENTS: True, IGNORE_SHARED: shared}
    if not shared and not _can_ignore_shared(qmp):
        del wanted[IGNORE_SHARED]
    qmp.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": name, "state": on} for name, on in wanted.items()]},
    )


def _wait_finished(qmp: Qmp, deadline: Deadline) -> None:
    """Wait until QEMU has left the run state of a migration, in which it refuses `cont`.

    QEMU sends the event that the migration is complete some instructions earlier, and none afterwards; see
    migration_iteration_finish of migration/migration.c.
    """
    for pause in deadline.pauses("QEMU to finish saving the state"):
        if qmp.execute("query-status")["status"] != "finish-migrate":
            return
        time.sleep(pause)


def _moved(event: Event) -> bool:
    return event.data["status"] in ("completed", "failed")


def _can_ignore_shared(qmp: Qmp) -> bool:
    known = qmp.execute("query-migrate-capabilities")
    return any(each["capability"] == IGNORE_SHARED for each in known)
