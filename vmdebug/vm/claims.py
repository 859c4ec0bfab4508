"""Who uses a run directory: claims one, looks at one, and clears one that nobody uses.

All of this happens with RUNTIME locked, so a launch in progress is never mistaken for one that was killed.
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

Use = Literal["running", "launching", "ended", "held", "orphan", "unreadable"]
"""How a run directory is used.

running: QEMU runs, and so does its owner if it has one.
launching: a process is starting it.
ended: QEMU has ended, and no command has listed that yet.
held: QEMU has ended, and its owner may still read the logs.
orphan: its launch was killed, or its owner has ended; to be cleared.
unreadable: another vmdebug made it, and QEMU runs.
"""

GUARDIAN_SECONDS = 10.0
"""How long a guardian may take to end a VM before this process does that."""

LEADER_SECONDS = 3.0
"""How long a runner script may run after its QEMU has ended."""

KILL_SECONDS = 10.0
"""How long a killed QEMU may take to end: the kernel frees its memory first."""


class Entry(msgspec.Struct, frozen=True):
    """A run directory and who uses it.

    Args:
        rundir: The directory.
        use: How it is used.
        state: Its VM's state, where that is there and can be read.
        launching: The processes that make it, where that was written.
        problem: Why the state cannot be read.
    """

    rundir: RunDir
    use: Use
    state: State | None = None
    launching: Launching | None = None
    problem: VmdebugError | None = None

    @property
    def prewarmed(self) -> bool:
        """Whether it was made before it is needed: see `vmdebug.vm.clones.prewarmed`."""
        return self.launching is not None and self.launching.prewarmed

    def describe(self) -> str:
        """Return in words who uses it, with the pid of the process to look at."""
        if self.state is not None and self.use == "running":
            return f"its QEMU has pid {self.state.pid}"
        if self.state is not None and self.state.owner is not None:
            return f"it has ended, and process {self.state.owner.pid} still holds it"
        if self.launching is not None:
            return f"process {self.launching.launcher.pid} is starting it"
        return f"see {self.rundir.path}"


def look(directory: RunDir) -> Entry:
    """Return who uses a directory that exists."""
    launching = state.read_launching(directory.launching)
    try:
        found = state.read(directory.state)
    except VmdebugError as problem:
        alive = _recorded_qemu(directory) is not None
        return Entry(directory, "unreadable" if alive else "orphan", None, launching, problem)
    if found is None:
        going_on = launching is not None and launching.launcher.alive()
        return Entry(directory, "launching" if going_on else "orphan", None, launching)
    return Entry(directory, _use(found), found, launching)


def _use(found: State) -> Use:
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
    """Make a run directory; it is recorded as this process's from its first moment.

    Args:
        name: The VM's name.
        exact: Whether the name must not change; otherwise -2, -3, … is added to one that is taken.
        guardian: The process that removes the directory if this process ends; recorded in it.
        scratch: Whether to make a scratch directory as well.
        prewarmed: Whether the VM is made before it is needed.
        deadline: How long to wait for another vmdebug that launches or clears a VM.

    Raises:
        UsageError: the name is invalid or taken.
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
    """Clear the directory if it is unused; return whether it can be made, or if `exact` raise UsageError."""
    if not os.path.lexists(directory.path):
        return True
    entry = look(directory)
    if entry.use in ("ended", "orphan"):
        clear(entry)
        return True
    if exact:
        raise UsageError(
            f"there is a VM named {directory.name} already: {entry.describe()}",
            hint=f"end it: vmdebug stop {directory.name}  or give this one another name: {option('name')}",
        )
    return False


def _take(directory: RunDir, *, guardian: ProcessRef, scratch: bool, prewarmed: bool) -> None:
    place = directory.scratch if scratch else None
    rundir.make(directory)
    try:
        who = Launching(launcher=ProcessRef.me(), guardian=guardian, scratch=place, prewarmed=prewarmed)
        state.write(directory.launching, who)
        if place is not None:
            rundir.make_scratch(place)
    except BaseException:
        rundir.remove(directory.path)
        raise


def clear(entry: Entry) -> None:
    """Kill a VM's remaining processes and remove its directories. RUNTIME has to be locked.

    Raises:
        HostError: a process does not end, or a directory cannot be removed.
    """
    launching = entry.launching
    if launching is not None:
        _outwait(launching)
    qemu = entry.state.qemu if entry.state is not None else _recorded_qemu(entry.rundir)
    leader = entry.state.leader if entry.state is not None else qemu
    if qemu is not None and leader is not None:
        kill(qemu, leader)
    children.reap()
    if launching is not None and launching.scratch is not None:
        rundir.remove(launching.scratch)
    rundir.remove(entry.rundir.path)


def kill(qemu: ProcessRef, leader: ProcessRef) -> None:
    """Kill a VM's remaining processes and wait until they have ended.

    Raises:
        HostError: QEMU does not end.
    """
    qemu.signal(signal.SIGKILL)
    if not qemu.wait(KILL_SECONDS):
        raise HostError(
            f"QEMU, process {qemu.pid}, does not end on SIGKILL",
            hint=f"it hangs in the host's kernel: see /proc/{qemu.pid}/stack",
        )
    # A runner script that did not exec QEMU may clean up first; then its session is killed.
    leader.wait(LEADER_SECONDS)
    leader.signal_group(signal.SIGKILL)
    leader.wait(KILL_SECONDS)


def discard(directory: RunDir, ended: State) -> None:
    """Clear the directory of a VM that has ended, unless a later VM uses it.

    Raises:
        HostError: see `clear`.
        DeadlineError: another vmdebug had RUNTIME locked all the time.
    """
    if not os.path.lexists(directory.path):
        return
    with rundir.locked(Deadline.after(KILL_SECONDS)):
        if not os.path.lexists(directory.path):
            return
        entry = look(directory)
        if entry.state == ended:
            clear(entry)


def _outwait(launching: Launching) -> None:
    """Wait until the guardian has ended: it could still remove a later VM's directory."""
    guardian = launching.guardian
    if not guardian.alive():
        return
    # If its owner has ended, it is ending the VM and then itself; otherwise it still waits for the owner.
    at_work = not launching.launcher.alive()
    if at_work and guardian.wait(GUARDIAN_SECONDS):
        return
    guardian.signal_group(signal.SIGKILL)
    if not guardian.wait(KILL_SECONDS):
        raise HostError(
            f"the guardian, process {guardian.pid}, does not end", hint="look at what it waits for"
        )


def _recorded_qemu(directory: RunDir) -> ProcessRef | None:
    """Return the process of the pidfile if it is this VM's QEMU, whose command line names the pidfile."""
    try:
        pid = int(directory.pidfile.read_text())
        found = ProcessRef.of(pid)
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return found if os.fsencode(directory.pidfile) in words else None
