"""A guest's memory and devices, frozen, and VMs that go on from there.

Its RAM lies in a file that each clone maps for itself: what one writes to gets a
page of its own, all the rest is there once. The devices' state, a few hundred KB, is
what `migrate` saves with `x-ignore-shared`; see docs/devel/migration of QEMU. Where
RAM cannot be shared the whole state is saved, RAM included, and read by each VM.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, VmError
from vmdebug.guest import DEFAULT_MEMORY_MIB, LaunchSpec
from vmdebug.progress import Report, silent
from vmdebug.spelling import option
from vmdebug.vm import launching
from vmdebug.vm.argv import Origin
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.planning import Means
from vmdebug.vm.saved import nameless

if TYPE_CHECKING:
    from vmdebug.vm.qmp import Event, Qmp

IGNORE_SHARED = "x-ignore-shared"

_EVENTS = "events"

_ANSWER = "QEMU to answer on QMP"


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen guest; its descriptors are its owner's to close, by `close`.

    Args:
        spec: What was started.
        means: What the host has for it.
        ram: Descriptor of the file with its RAM; None where the state has that too.
        state: Descriptor of the file with its state.
        log: Descriptor of the file with what it had written to its console.
        name: What the VM was called that was frozen.
    """

    spec: LaunchSpec
    means: Means
    ram: int | None
    state: int
    log: int
    name: str

    def close(self) -> None:
        """Let go of its memory, which is gone once no clone has it any more."""
        os.close(self.state)
        os.close(self.log)
        if self.ram is not None:
            os.close(self.ram)


def can_ignore_shared(vm: Vm, *, deadline: Deadline) -> bool:
    """Say whether a VM's QEMU can save a state without the RAM that is shared."""
    with vm.connected(timeout=deadline.left(_ANSWER)) as qmp:
        return _can_ignore_shared(qmp)


def save(vm: Vm, into: int, *, shared: bool, deadline: Deadline) -> None:
    """Stop a VM and save its state.

    Args:
        vm: The VM. It stays stopped.
        into: Descriptor of a file.
        shared: Whether its RAM is in a shared file, and stays out of the state.
        deadline: Until when.

    Raises:
        QmpError: QEMU refused it: a device of the guest cannot be saved, such as a mounted 9p.
        VmError: it could not be written.
        GuestDiedError: QEMU has ended.
        DeadlineError: it took too long.
    """
    with vm.connected(timeout=deadline.left(_ANSWER)) as qmp, qmp.listen("MIGRATION") as events:
        qmp.execute("stop")
        _set_capabilities(qmp, shared=shared)
        qmp.execute("migrate", {"uri": f"exec:cat >{nameless.path(into)}"})
        events.next(_moved)
        moved = qmp.execute("query-migrate")
    if moved["status"] != "completed":
        why = moved.get("error-desc", "it says no more")
        raise VmError(f"the state of {vm.name} could not be saved: {why}")


def start(
    frozen: Frozen,
    *,
    name: str,
    bound: bool,
    exact_name: bool = False,
    spare: bool = False,
    report: Report = silent,
    deadline: Deadline,
) -> Vm:
    """Start a VM that goes on where a frozen one stood.

    Args:
        frozen: The frozen one.
        name: What it is called.
        bound: Whether it dies with this process; otherwise it stays.
        exact_name: Whether the name is taken as it is; otherwise -2, -3, … is added to one that is taken.
        spare: Whether it is made before somebody needs it: see `vmdebug.vm.saved.spares`.
        report: Told what takes long.
        deadline: Until when it has to run.

    Raises:
        LaunchError: QEMU ended.
        VmError: it cannot load the state.
        DeadlineError: it took too long. In all these cases nothing is left.
    """
    origin = Origin(ram=frozen.ram, incoming=True)
    vm = launching.launch(
        msgspec.structs.replace(frozen.spec, name=name, halt=False),
        bound=bound,
        report=report,
        deadline=deadline,
        exact_name=exact_name,
        start=Start(
            origin=origin,
            fds=() if frozen.ram is None else (frozen.ram,),
            log=nameless.content(frozen.log),
            means=frozen.means,
            clone_of=frozen.name,
            spare=spare,
        ),
    )
    try:
        load(vm, frozen.state, shared=frozen.ram is not None, deadline=deadline)
    except BaseException:
        vm.stop(force=True)
        raise
    return vm


def load(vm: Vm, state: int, *, shared: bool, run: bool = True, deadline: Deadline) -> None:
    """Have a VM that waits for a state load one.

    Args:
        vm: The VM.
        state: Descriptor of the file with the state.
        shared: Whether the RAM is in a file, and not in the state.
        run: Whether the guest runs on from there.
        deadline: Until when.

    Raises:
        VmError: it cannot load it.
        GuestDiedError: QEMU has ended, as it does when a state is not for it.
        DeadlineError: it took too long.
    """
    with vm.connected(timeout=deadline.left(_ANSWER)) as qmp, qmp.listen("MIGRATION") as events:
        _set_capabilities(qmp, shared=shared)
        qmp.execute("migrate-incoming", {"uri": f"exec:cat <{nameless.path(state)}"})
        if events.next(_moved).data["status"] != "completed":
            words = vm.rundir.qemu_log.read_text(errors="replace")
            raise VmError(
                f"{vm.name} cannot load the state that it was to go on from", detail=process.tail(words)
            )
        if shared:
            # What is saved of it later is to be whole again.
            _set_capabilities(qmp, shared=False)
        if run:
            qmp.execute("cont")


def memory_mib(spec: LaunchSpec) -> int:
    """Return how much RAM a guest with a command line of ours has, in MiB."""
    return spec.memory or DEFAULT_MEMORY_MIB


def new_ram(spec: LaunchSpec, directory: Path | None) -> int:
    """Return a descriptor of a file for a guest's RAM.

    Raises:
        HostError: the directory cannot have one, or has no room.
    """
    if missing := nameless.room(memory_mib(spec), directory):
        raise HostError(
            missing, hint=f"give the guest less: {option('memory')}; or name a directory that has it"
        )
    ram = nameless.make("ram", directory)
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


def _moved(event: Event) -> bool:
    return event.data["status"] in ("completed", "failed")


def _can_ignore_shared(qmp: Qmp) -> bool:
    known = qmp.execute("query-migrate-capabilities")
    return any(each["capability"] == IGNORE_SHARED for each in known)
