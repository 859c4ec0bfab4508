"""Freezing a guest at its shell, in the best way that it allows, and saying why not in a better one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, VmError
from vmdebug.guest import LaunchSpec, RunnerMachine
from vmdebug.progress import Report, Step
from vmdebug.vm import argv, launching, qemuargs, shellup
from vmdebug.vm.argv import Origin
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.planning import Means
from vmdebug.vm.qemuargs import Options
from vmdebug.vm.saved import frozen, nameless
from vmdebug.vm.saved.frozen import Frozen
from vmdebug.vm.saved.holders import How

PROOF_SECONDS = 20.0
"""How long the first VM made of a template may take to its shell; 0.1 s is usual."""

CLONED = "its memory is shared, and each VM has a copy on write"

_OWN_MEMORY = ("m", "numa", "mem-path", "incoming", "loadvm")


class Outcome(msgspec.Struct, frozen=True):
    """What was made.

    Args:
        how: Which way VMs are made of it.
        reason: Why not a better one.
        frozen: The frozen guest; None where each VM boots.
    """

    how: How
    reason: str
    frozen: Frozen | None = None


def freeze(
    spec: LaunchSpec,
    means: Means,
    *,
    directory: Path | None,
    lost: Callable[[Vm], None] | None,
    report: Report,
    deadline: Deadline,
) -> Outcome:
    """Boot a guest to its shell and freeze it; its VM is gone afterwards.

    Args:
        spec: The guest.
        means: What the host has for it.
        directory: Where its memory is kept; None is shared memory.
        lost: See `shellup.come`.
        report: Told what takes long.
        deadline: Until when.

    Raises:
        UsageError: the spec cannot be right.
        HostError: the machine lacks something.
        LaunchError: QEMU did not start.
        VmError: the guest does not come to its shell.
        DeadlineError: it took too long. In all these cases nothing is left.
    """
    if reason := unable(spec):
        return Outcome("boot", reason)
    lacking = nameless.room(frozen.memory_mib(spec), directory)
    with contextlib.ExitStack() as files:
        file = ram = None if lacking else _kept(frozen.new_ram(spec, directory), files)
        report(Step("booting the template", note=spec.name))
        try:
            with _booted(spec, means, ram, lost, deadline) as vm:
                if ram is not None and not frozen.can_ignore_shared(vm, deadline=deadline):
                    ram, lacking = None, f"this QEMU has no migration capability {frozen.IGNORE_SHARED}"
                whole = Frozen(
                    spec=spec,
                    means=means,
                    ram=ram,
                    state=_kept(nameless.make("state", _place(directory, lacking)), files),
                    log=_kept(nameless.make("log"), files),
                    name=spec.name,
                )
                _save(vm, whole, deadline)
            outcome = Outcome("snapshot", lacking, whole) if lacking else Outcome("clone", CLONED, whole)
            _prove(outcome, deadline)
        except _RefusedError as refused:
            return Outcome("boot", refused.message)
        files.pop_all()
    if file is not None and ram is None:
        os.close(file)
    return outcome


def unable(spec: LaunchSpec) -> str:
    """Say why a guest's state would not be all of it, or cannot be had; "" where it may."""
    if isinstance(spec.machine, RunnerMachine):
        return "a runner's guest has a disk and mounted 9p shares, which no copy can have"
    if spec.machine.disk is not None and spec.machine.throwaway:
        return f"what it writes to the disk {spec.machine.disk} would not be copied with its memory"
    if spec.machine.disk is not None:
        return f"the disk {spec.machine.disk} has one writer at a time"
    return _unable_for(qemuargs.parse(spec.qemu_args))


def _unable_for(given: Options) -> str:
    for option in given.disks():
        return f"QEMU's argument {option.word} gives it a disk, which has one writer at a time"
    for option in given.named(*_OWN_MEMORY, *argv.MACHINE):
        if option.name in _OWN_MEMORY or "memory-backend" in option.properties:
            return f"QEMU's argument {option.word} says where its memory is"
    for option in given.unread():
        return f"QEMU's argument {option.word} names a file that vmdebug does not read: it may name a disk"
    return ""


class _RefusedError(VmError):
    """The guest runs, and cannot be frozen."""


@contextlib.contextmanager
def _booted(
    spec: LaunchSpec, means: Means, ram: int | None, lost: Callable[[Vm], None] | None, deadline: Deadline
) -> Iterator[Vm]:
    named = msgspec.structs.replace(spec, name=_name(spec))
    fds = () if ram is None else (ram,)
    start = Start(origin=Origin(ram=ram, shared=True), fds=fds, means=means)
    with launching.launch(named, bound=True, deadline=deadline, exact_name=False, start=start) as vm:
        shellup.come(vm, copy=False, lost=lost, deadline=deadline)
        yield vm


def _save(vm: Vm, whole: Frozen, deadline: Deadline) -> None:
    try:
        frozen.save(vm, whole.state, shared=whole.ram is not None, deadline=deadline)
    except GuestDiedError:
        raise
    except VmError as error:
        raise _RefusedError(f"its state cannot be saved: {error.message}") from error
    nameless.fill(whole.log, vm.rundir.console_log.read_bytes())


def _prove(outcome: Outcome, deadline: Deadline) -> None:
    """Make a first VM of it: not every device whose state can be saved can be loaded too."""
    if outcome.frozen is None:
        return
    until = deadline.at_most(PROOF_SECONDS)
    name = _name(outcome.frozen.spec)
    try:
        with frozen.start(outcome.frozen, name=name, bound=True, deadline=until) as vm:
            shellup.come(vm, copy=True, deadline=until)
    except VmError as error:
        raise _RefusedError(f"its state can be saved, and not loaded: {error.message}") from error


def _name(spec: LaunchSpec) -> str:
    """Return what the VMs are called that make a template; a name has room for 63 letters."""
    return f"{spec.name[:50]}-template"


def _place(directory: Path | None, lacking: str) -> Path | None:
    """Return where the state goes; with the RAM in it, a disk is the place that may have room for it."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp") if lacking else directory  # noqa: S108 - it has no name there


def _kept(fd: int, files: contextlib.ExitStack) -> int:
    files.callback(os.close, fd)
    return fd
