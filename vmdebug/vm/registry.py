"""The VMs of this user: finds and lists them, and removes what killed processes have left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, UsageError, VmdebugError
from vmdebug.vm import (
    directory_use,
    guest_status,
    lost,
    rundir,
    runtime_directory,
    segment,
    template_registry,
)
from vmdebug.vm.directory_use import Entry
from vmdebug.vm.lost import LostVm
from vmdebug.vm.machine import Vm
from vmdebug.vm.rundir import RunDir

SECONDS = 30.0
"""How long a search may take: another vmdebug may be removing a VM meanwhile."""


class Survey(msgspec.Struct, frozen=True):
    """The VMs of this user.

    Args:
        vms: All VMs, sorted by name. A VM that has ended is in it once; its directory is already removed.
        problems: Why the states of other VMs cannot be read.
        lost: The VMs whose run directory was removed.
    """

    vms: tuple[Vm, ...]
    problems: tuple[VmdebugError, ...]
    lost: tuple[LostVm, ...] = ()


def every(*, timeout: float = SECONDS) -> list[Vm]:
    """Return all VMs of this user, sorted by name. A VM that has ended is returned once, and then removed.

    Args:
        timeout: Seconds to wait for another vmdebug that is removing a VM.

    Raises:
        HostError: the runtime directory is not private, or a file in it cannot be removed.
        DeadlineError: another vmdebug kept it locked.
    """
    return list(sweep(timeout=timeout).vms)


def sweep(*, timeout: float = SECONDS) -> Survey:
    """Remove what killed processes have left, and return all VMs; see `every`."""
    template_registry.sweep()
    segment.sweep()
    vms: list[Vm] = []
    problems: list[VmdebugError] = []
    with _entries(timeout) as entries:
        for entry in entries:
            match entry:
                case Entry(use="running" | "held", state=state) if state is not None:
                    vms.append(Vm(entry.rundir, state))
                case Entry(use="ended", state=state) if state is not None:
                    ended = guest_status.after_end(entry.rundir.console_log)
                    vms.append(Vm(entry.rundir, state, ended=ended))
                    directory_use.clear(entry)
                case Entry(use="orphan"):
                    directory_use.clear(entry)
                case Entry(problem=VmdebugError() as problem):
                    problems.append(problem)
    return Survey(tuple(vms), tuple(problems), lost.every())


def names() -> list[str]:
    """Return the names of all VMs and change nothing; for completion in a shell."""
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in os.scandir(runtime_directory.location()) if _is_vm(entry))
    return []


def find(name: str | None = None, *, timeout: float = SECONDS) -> Vm:
    """Return a VM by its name. A VM that has ended is found until `every` has returned it.

    Args:
        name: Its name; None: the only VM that runs, else the only one that has ended, without prewarmed ones.
        timeout: Seconds to wait for another vmdebug that is removing a VM.

    Raises:
        UsageError: no VM has that name; or there are several, and no name is given. The hint lists the VMs.
        StateError: the VM has not started yet; or its run directory was removed.
        VmdebugError: another version of vmdebug started the VM, and its state cannot be read.
        DeadlineError: another vmdebug kept the runtime directory locked.
    """
    if name is not None:
        rundir.check_name(name)
    with _entries(timeout) as found:
        entries = [entry for entry in found if not _cleared(entry)]
    if name is None:
        return _only([entry for entry in entries if not entry.prewarmed])
    for entry in entries:
        if entry.rundir.name == name:
            return _vm(entry)
    if (without_directory := find_lost(name)) is not None:
        raise without_directory.error()
    raise UsageError(f"there is no VM named {name}", hint=_known(entries))


def find_lost(name: str) -> LostVm | None:
    """Return the VM of a name whose run directory was removed; None if there is none."""
    return next((each for each in lost.every() if each.name == name), None)


@contextlib.contextmanager
def _entries(timeout: float) -> Iterator[list[Entry]]:
    """Lock RUNTIME, if it exists, and yield its entries."""
    if not os.path.lexists(runtime_directory.location()):
        yield []
        return
    with runtime_directory.locked(Deadline.after(timeout)) as runtime:
        with os.scandir(runtime) as entries:
            inside = sorted(entry.name for entry in entries if _is_vm(entry))
        yield [directory_use.inspect(RunDir(runtime / name)) for name in inside]


def _is_vm(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")


def _cleared(entry: Entry) -> bool:
    if entry.use == "orphan":
        directory_use.clear(entry)
        return True
    return False


def _only(entries: list[Entry]) -> Vm:
    live = [entry for entry in entries if entry.use not in ("ended", "held")]
    candidates = live or entries
    if not candidates:
        if without_directory := lost.every():
            raise without_directory[0].error()
        raise UsageError("no VM runs", hint="start one: vmdebug start")
    if len(candidates) > 1:
        raise UsageError(f"{len(candidates)} VMs run: name one of them", hint=_known(candidates))
    return _vm(candidates[0])


def _vm(entry: Entry) -> Vm:
    if entry.problem is not None:
        raise entry.problem
    if entry.state is None:
        raise StateError(
            f"{entry.rundir.name} has not started yet: {entry.describe()}",
            hint="wait for its `start` to return",
        )
    return Vm(entry.rundir, entry.state)


def _known(entries: list[Entry]) -> str:
    there = ", ".join(entry.rundir.name for entry in entries)
    return f"the VMs are: {there}" if there else "start one: vmdebug start"
