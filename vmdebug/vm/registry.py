"""The VMs of this user: found by name, listed, and cleared of what killed processes left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec

from vmdebug.channel.serial import panic
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, UsageError, VmdebugError
from vmdebug.vm import claims, rundir, template_registry
from vmdebug.vm.claims import Tenant
from vmdebug.vm.machine import Status, Vm
from vmdebug.vm.rundir import RunDir

SECONDS = 30.0
"""How long looking may take: another vmdebug may be clearing something just now."""


class Survey(msgspec.Struct, frozen=True):
    """What was found.

    Args:
        vms: All VMs, by name; those that have ended are listed once, their directories are gone.
        problems: Why others cannot be read.
    """

    vms: tuple[Vm, ...]
    problems: tuple[VmdebugError, ...]


def every(*, deadline: Deadline | None = None) -> list[Vm]:
    """Return all VMs of this user, by name; one that has ended is listed once, and its directory is removed.

    Raises:
        HostError: the runtime directory is not private, or something in it cannot be removed.
        DeadlineError: another vmdebug held it all the time.
    """
    return list(sweep(deadline=deadline).vms)


def sweep(*, deadline: Deadline | None = None) -> Survey:
    """Clear what killed launches, owners and QEMUs left, and say what there is; see `every`."""
    template_registry.sweep()
    vms: list[Vm] = []
    problems: list[VmdebugError] = []
    with _tenants(deadline) as tenants:
        for tenant in tenants:
            match tenant:
                case Tenant(tenancy="running" | "held", state=state) if state is not None:
                    vms.append(Vm(tenant.rundir, state))
                case Tenant(tenancy="ended", state=state) if state is not None:
                    ended: Status = "panicked" if panic.seen(tenant.rundir.console_log) else "exited"
                    vms.append(Vm(tenant.rundir, state, ended=ended))
                    claims.clear(tenant)
                case Tenant(tenancy="orphan"):
                    claims.clear(tenant)
                case Tenant(problem=VmdebugError() as problem):
                    problems.append(problem)
    return Survey(tuple(vms), tuple(problems))


def names() -> list[str]:
    """Return the names of what is there, changing nothing: for completion in a shell."""
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in os.scandir(rundir.runtime()) if _is_vm(entry))
    return []


def find(name: str | None = None, *, deadline: Deadline | None = None) -> Vm:
    """Return a VM by its name; one that has ended is found until `every` has listed it.

    Args:
        name: Its name; None takes the only one that runs, or the only one that has ended. One that waits
            for somebody to need it is not meant.
        deadline: Until when to wait for another vmdebug.

    Raises:
        UsageError: there is none of that name, or several and no name; the hint has those there are.
        StateError: it is being started.
        VmdebugError: another vmdebug started it, and its state cannot be read.
    """
    if name is not None:
        rundir.check_name(name)
    with _tenants(deadline) as found:
        tenants = [tenant for tenant in found if not _cleared(tenant)]
    if name is None:
        return _only([tenant for tenant in tenants if not tenant.prewarmed])
    for tenant in tenants:
        if tenant.rundir.name == name:
            return _vm(tenant)
    raise UsageError(f"there is no VM named {name}", hint=_known(tenants))


@contextlib.contextmanager
def _tenants(deadline: Deadline | None) -> Iterator[list[Tenant]]:
    """Hold RUNTIME, unless there is none, and tell who is in it."""
    if not os.path.lexists(rundir.runtime()):
        yield []
        return
    with rundir.locked(deadline or Deadline.after(SECONDS)) as runtime:
        with os.scandir(runtime) as entries:
            inside = sorted(entry.name for entry in entries if _is_vm(entry))
        yield [claims.look(RunDir(runtime / name)) for name in inside]


def _is_vm(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")


def _cleared(tenant: Tenant) -> bool:
    if tenant.tenancy == "orphan":
        claims.clear(tenant)
        return True
    return False


def _only(tenants: list[Tenant]) -> Vm:
    live = [tenant for tenant in tenants if tenant.tenancy not in ("ended", "held")]
    candidates = live or tenants
    if not candidates:
        raise UsageError("no VM runs", hint="start one: vmdebug start")
    if len(candidates) > 1:
        raise UsageError(f"{len(candidates)} VMs run: say which one", hint=_known(candidates))
    return _vm(candidates[0])


def _vm(tenant: Tenant) -> Vm:
    if tenant.problem is not None:
        raise tenant.problem
    if tenant.state is None:
        raise StateError(
            f"{tenant.rundir.name} is not there yet: {tenant.describe()}",
            hint="wait for its `start` to return",
        )
    return Vm(tenant.rundir, tenant.state)


def _known(tenants: list[Tenant]) -> str:
    there = ", ".join(tenant.rundir.name for tenant in tenants)
    return f"there is: {there}" if there else "start one: vmdebug start"
