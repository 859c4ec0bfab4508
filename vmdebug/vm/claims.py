"""Who has a run directory: claiming one, looking at one, clearing one that nobody needs.

All of it happens with RUNTIME locked, so a launch that is going on is never
taken for one that was cut short.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError, VmdebugError
from vmdebug.process import ProcessRef
from vmdebug.spelling import option
from vmdebug.vm import children, rundir, state
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import Launching, State

Tenancy = Literal["running", "launching", "ended", "held", "orphan", "unreadable"]
"""What a run directory is.

running: QEMU lives, and so does its owner if it has one.
launching: somebody is starting it.
ended: QEMU has gone, nobody has been told yet.
held: QEMU has gone, and its owner may still read the logs.
orphan: cut short in its launch, or its owner has gone; to be cleared.
unreadable: another vmdebug's, and QEMU lives.
"""

GUARDIAN_SECONDS = 10.0
"""How long a guardian may take over its work before it is done for it."""

LEADER_SECONDS = 3.0
"""How long a runner script may go on after its QEMU."""

KILL_SECONDS = 10.0
"""How long a killed QEMU may take to end: the kernel frees its memory first."""


class Tenant(msgspec.Struct, frozen=True):
    """Who has a run directory.

    Args:
        rundir: The directory.
        tenancy: What it is.
        state: Its VM's state, where there is one that can be read.
        launching: Who makes it, where that was written.
        problem: Why the state cannot be read.
    """

    rundir: RunDir
    tenancy: Tenancy
    state: State | None = None
    launching: Launching | None = None
    problem: VmdebugError | None = None

    @property
    def prewarmed(self) -> bool:
        """Whether it waits for somebody to need it."""
        return self.launching is not None and self.launching.prewarmed

    def describe(self) -> str:
        """Say who it is, with the pid of the process to look at."""
        if self.state is not None and self.tenancy == "running":
            return f"its QEMU has pid {self.state.pid}"
        if self.state is not None and self.state.owner is not None:
            return f"it has ended, and process {self.state.owner.pid} still holds it"
        if self.launching is not None:
            return f"process {self.launching.launcher.pid} is starting it"
        return f"see {self.rundir.path}"


def look(directory: RunDir) -> Tenant:
    """Find out who has a directory that exists."""
    launching = state.read_launching(directory.launching)
    try:
        found = state.read(directory.state)
    except VmdebugError as problem:
        alive = _recorded_qemu(directory) is not None
        return Tenant(directory, "unreadable" if alive else "orphan", None, launching, problem)
    if found is None:
        going_on = launching is not None and launching.launcher.alive()
        return Tenant(directory, "launching" if going_on else "orphan", None, launching)
    return Tenant(directory, _tenancy(found), found, launching)


def _tenancy(found: State) -> Tenancy:
    if found.owner is not None and not found.owner.alive():
        return "orphan"
    if found.qemu.alive():
        return "running"
    return "ended" if found.owner is None else "held"


def claim(
    name: str,
    *,
    exact: bool,
    guardian: ProcessRef,
    scratch: bool,
    prewarmed: bool = False,
    deadline: Deadline,
) -> RunDir:
    """Make a run directory that is this process's from the first moment.

    Args:
        name: What the VM shall be called.
        exact: Whether another name will not do; otherwise -2, -3, … is added to one that is taken.
        guardian: Told about later, recorded now.
        scratch: Whether the VM needs a scratch directory; it is made too.
        prewarmed: Whether nobody needs it yet.
        deadline: Until when to wait for another vmdebug's launch or clearing.

    Raises:
        UsageError: the name cannot be one, or is taken.
        HostError: a directory cannot be made, is not private, or there is no space.
    """
    rundir.check_name(name)
    with rundir.locked(deadline) as runtime:
        for candidate in _candidates(name, exact=exact):
            directory = RunDir(runtime / candidate)
            if _vacant(directory, exact=exact):
                _take(directory, guardian=guardian, scratch=scratch, prewarmed=prewarmed)
                return directory
    raise AssertionError  # the candidates never end, or the taken one was an error


def _candidates(name: str, *, exact: bool) -> Iterator[str]:
    yield name
    if not exact:
        yield from (f"{name}-{number}" for number in itertools.count(2))


def _vacant(directory: RunDir, *, exact: bool) -> bool:
    """Say whether the directory may be made, after clearing what nobody needs; if it must be: UsageError."""
    if not os.path.lexists(directory.path):
        return True
    tenant = look(directory)
    if tenant.tenancy in ("ended", "orphan"):
        clear(tenant)
        return True
    if exact:
        raise UsageError(
            f"there is a VM named {directory.name} already: {tenant.describe()}",
            hint=f"end it: vmdebug stop {directory.name}  or give this one another name: {option('name')}",
        )
    return False


def _take(directory: RunDir, *, guardian: ProcessRef, scratch: bool, prewarmed: bool) -> None:
    launcher = ProcessRef.of(os.getpid())
    assert launcher is not None  # noqa: S101 - we are running
    place = directory.scratch if scratch else None
    rundir.make(directory)
    try:
        who = Launching(launcher=launcher, guardian=guardian, scratch=place, prewarmed=prewarmed)
        state.write(directory.launching, who)
        if place is not None:
            rundir.make_scratch(place)
    except BaseException:
        rundir.remove(directory.path)
        raise


def clear(tenant: Tenant) -> None:
    """Kill what is left of a VM and remove its directories; RUNTIME is locked.

    Raises:
        HostError: a process does not end, or a directory cannot be removed.
    """
    launching = tenant.launching
    if launching is not None:
        _outwait(launching)
    qemu = tenant.state.qemu if tenant.state is not None else _recorded_qemu(tenant.rundir)
    leader = tenant.state.leader if tenant.state is not None else qemu
    if qemu is not None and leader is not None:
        kill(qemu, leader)
    children.reap()
    if launching is not None and launching.scratch is not None:
        rundir.remove(launching.scratch)
    rundir.remove(tenant.rundir.path)


def kill(qemu: ProcessRef, leader: ProcessRef) -> None:
    """End what is left of a VM's processes, and wait for it.

    Raises:
        HostError: QEMU does not end.
    """
    qemu.signal(signal.SIGKILL)
    if not qemu.wait(KILL_SECONDS):
        raise HostError(
            f"QEMU, process {qemu.pid}, does not end, not even by SIGKILL",
            hint=f"it hangs in the host's kernel: see /proc/{qemu.pid}/stack",
        )
    # A runner script that did not exec QEMU may tidy up; what it left in its session ends here.
    leader.wait(LEADER_SECONDS)
    leader.signal_group(signal.SIGKILL)
    leader.wait(KILL_SECONDS)


def discard(directory: RunDir, ended: State) -> None:
    """Clear the directory of a VM that has ended, unless a later VM has it by now.

    Raises:
        HostError: see `clear`.
        DeadlineError: another vmdebug held RUNTIME all the time.
    """
    if not os.path.lexists(directory.path):
        return
    with rundir.locked(Deadline.after(KILL_SECONDS)):
        if not os.path.lexists(directory.path):
            return
        tenant = look(directory)
        if tenant.state == ended:
            clear(tenant)


def _outwait(launching: Launching) -> None:
    """Wait until the guardian has ended: were it still at work, it could remove a later VM's directory."""
    guardian = launching.guardian
    if not guardian.alive():
        return
    # With its owner gone it is about to end by itself; otherwise it waits for an end that is here already.
    at_work = not launching.launcher.alive()
    if at_work and guardian.wait(GUARDIAN_SECONDS):
        return
    guardian.signal_group(signal.SIGKILL)
    if not guardian.wait(KILL_SECONDS):
        raise HostError(
            f"the guardian, process {guardian.pid}, does not end", hint="look at what it waits for"
        )


def _recorded_qemu(directory: RunDir) -> ProcessRef | None:
    """Return the process of the pidfile, if it is this VM's QEMU: its command line names the pidfile."""
    try:
        pid = int(directory.pidfile.read_text())
        found = ProcessRef.of(pid)
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return found if os.fsencode(directory.pidfile) in words else None
