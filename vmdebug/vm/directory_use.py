"""Finds out which processes use a run directory; reserves one for a launch, and clears an unused one.

All functions need the lock on RUNTIME, so that a launch in progress is not taken for one that was killed.
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
from vmdebug.vm import children, lost, rundir, runtime_directory, state
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import Launching, State

Use = Literal["running", "launching", "ended", "held", "orphan", "unreadable"]
"""The use of a run directory.

running: QEMU runs, and so does its owner if it has one.
launching: a process is starting QEMU.
ended: QEMU has ended, and no command has reported that yet.
held: QEMU has ended, but its owner may still read the logs.
orphan: its launch was killed, or its owner has ended; it must be cleared.
unreadable: another vmdebug made it, and QEMU runs.
"""

GUARDIAN_SECONDS = 10.0
"""How long a guardian may take to end a VM; then this process does it."""

LEADER_SECONDS = 3.0
"""How long a runner script may run after its QEMU has ended."""

KILL_SECONDS = 10.0
"""How long QEMU may take to end after SIGKILL: the kernel first frees its memory."""


class Entry(msgspec.Struct, frozen=True):
    """A run directory and its use.

    Args:
        rundir: The directory.
        use: Its use.
        state: The state of its VM, or None if it is missing or cannot be read.
        launching: The processes that start the VM, or None if that file is missing.
        problem: Why the state cannot be read.
    """

    rundir: RunDir
    use: Use
    state: State | None = None
    launching: Launching | None = None
    problem: VmdebugError | None = None

    @property
    def prewarmed(self) -> bool:
        """Whether its VM is prewarmed; see `vmdebug.vm.clones.prewarmed`."""
        return self.launching is not None and self.launching.prewarmed

    def describe(self) -> str:
        """Return its use in words, with the pid of a process."""
        if self.state is not None and self.use == "running":
            return f"its QEMU has pid {self.state.pid}"
        if self.state is not None and self.state.owner is not None:
            return f"it has ended, and process {self.state.owner.pid} still holds it"
        if self.launching is not None:
            return f"process {self.launching.launcher.pid} is starting it"
        return f"see {self.rundir.path}"


def inspect(directory: RunDir) -> Entry:
    """Return the use of an existing directory."""
    launching = state.read_launching(directory.launching)
    try:
        found = state.read(directory.state)
    except VmdebugError as problem:
        alive = _recorded_qemu(directory) is not None
        return Entry(directory, "unreadable" if alive else "orphan", None, launching, problem)
    if found is None:
        in_progress = launching is not None and launching.launcher.alive()
        return Entry(directory, "launching" if in_progress else "orphan", None, launching)
    return Entry(directory, _use(found), found, launching)


def _use(found: State) -> Use:
    if found.owner is not None and not found.owner.alive():
        return "orphan"
    if found.qemu.alive():
        return "running"
    return "ended" if found.owner is None else "held"


def reserve(
    name: str,
    *,
    exact: bool,
    guardian: ProcessRef,
    scratch: bool,
    prewarmed: bool = False,
    deadline: Deadline,
) -> RunDir:
    """Make a run directory, and record this process in it as the launcher.

    Args:
        name: The VM's name.
        exact: Whether the name must not change; otherwise -2, -3, … is added to one that is taken.
        guardian: The process that removes the directory if this process ends; it is recorded, too.
        scratch: Whether to make a scratch directory as well.
        prewarmed: Whether the VM is prewarmed.
        deadline: When to give up waiting for another vmdebug that launches or clears a VM.

    Raises:
        UsageError: the name is invalid or taken.
        HostError: a directory cannot be made, is not private, or there is no space.
    """
    rundir.check_name(name)
    with runtime_directory.locked(deadline) as runtime:
        for candidate in _candidates(name, exact=exact):
            directory = RunDir(runtime / candidate)
            if _vacant(directory, exact=exact):
                _take(directory, guardian=guardian, scratch=scratch, prewarmed=prewarmed)
                return directory
    raise AssertionError  # there is always another candidate, unless `exact` has raised


def _candidates(name: str, *, exact: bool) -> Iterator[str]:
    yield name
    if not exact:
        yield from (f"{name}-{number}" for number in itertools.count(2))


def _vacant(directory: RunDir, *, exact: bool) -> bool:
    """Clear the directory if it is unused; if it is in use, return False, or raise with `exact`."""
    if not os.path.lexists(directory.path):
        return _not_lost(directory, exact=exact)
    entry = inspect(directory)
    if entry.use in ("ended", "orphan"):
        clear(entry)
        return True
    if exact:
        raise UsageError(
            f"there is already a VM named {directory.name}: {entry.describe()}",
            hint=f"end it: vmdebug stop {directory.name}; or choose another name: {option('name')}",
        )
    return False


def _not_lost(directory: RunDir, *, exact: bool) -> bool:
    """Return whether no QEMU runs any more that used this directory; with `exact`, raise if one does."""
    before = lost.of(directory)
    if before is not None and exact:
        raise UsageError(before.error().message, hint=before.error().hint)
    return before is None


def _take(directory: RunDir, *, guardian: ProcessRef, scratch: bool, prewarmed: bool) -> None:
    place = directory.scratch if scratch else None
    runtime_directory.make(directory)
    try:
        who = Launching(launcher=ProcessRef.me(), guardian=guardian, scratch=place, prewarmed=prewarmed)
        state.write(directory.launching, who)
        if place is not None:
            runtime_directory.make_scratch(place)
    except BaseException:
        runtime_directory.remove(directory.path)
        raise


def clear(entry: Entry) -> None:
    """Kill a VM's remaining processes and remove its directories. RUNTIME must be locked.

    Raises:
        HostError: a process does not end, or a directory cannot be removed.
    """
    launching = entry.launching
    if launching is not None:
        _wait_guardian(launching)
    qemu = entry.state.qemu if entry.state is not None else _recorded_qemu(entry.rundir)
    leader = entry.state.leader if entry.state is not None else qemu
    if qemu is not None and leader is not None:
        kill(qemu, leader)
    children.reap()
    if launching is not None and launching.scratch is not None:
        runtime_directory.remove(launching.scratch)
    runtime_directory.remove(entry.rundir.path)


def kill(qemu: ProcessRef, leader: ProcessRef) -> None:
    """Kill a VM's remaining processes and wait until they have ended.

    Raises:
        HostError: QEMU does not end.
    """
    qemu.signal(signal.SIGKILL)
    if not qemu.wait(KILL_SECONDS):
        raise HostError(
            f"QEMU, process {qemu.pid}, does not end after SIGKILL",
            hint=f"it hangs in the host's kernel; look at /proc/{qemu.pid}/stack",
        )
    # A runner script that did not exec QEMU may clean up first; then its session is killed.
    leader.wait(LEADER_SECONDS)
    leader.signal_group(signal.SIGKILL)
    leader.wait(KILL_SECONDS)


def discard(directory: RunDir, ended: State) -> None:
    """Clear the directory of a VM that has ended, unless a later VM uses it.

    Raises:
        HostError: see `clear`.
        DeadlineError: another vmdebug kept RUNTIME locked.
    """
    if not os.path.lexists(directory.path):
        return
    with runtime_directory.locked(Deadline.after(KILL_SECONDS)):
        if not os.path.lexists(directory.path):
            return
        entry = inspect(directory)
        if entry.state == ended:
            clear(entry)


def _wait_guardian(launching: Launching) -> None:
    """Wait until the guardian has ended, so that it cannot remove the directory of a later VM."""
    guardian = launching.guardian
    if not guardian.alive():
        return
    # If its owner has ended, the guardian ends the VM and then itself. Otherwise it waits for its owner.
    at_work = not launching.launcher.alive()
    if at_work and guardian.wait(GUARDIAN_SECONDS):
        return
    guardian.signal_group(signal.SIGKILL)
    if not guardian.wait(KILL_SECONDS):
        raise HostError(
            f"the guardian, process {guardian.pid}, does not end", hint=f"look at /proc/{guardian.pid}/stack"
        )


def _recorded_qemu(directory: RunDir) -> ProcessRef | None:
    """Return the process of the pidfile, if its command line shows that it is this VM's QEMU."""
    try:
        pid = int(directory.pidfile.read_text())
        found = ProcessRef.of(pid)
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return found if os.fsencode(directory.pidfile) in words else None
