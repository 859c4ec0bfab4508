"""A booted guest that any number of VMs go on from, each in a fraction of its boot.

The best way that a guest allows is taken, and `Template.reason` has what the better ones lack:

clone
    Its RAM is shared memory, of which each VM has a copy on write: `vmdebug.vm.saved.frozen`.
snapshot
    Its whole state is saved, RAM included, and loaded by each VM.
boot
    Each VM boots.

Processes that want the same template share one: `vmdebug.vm.saved.holders`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vmdebug import guest
from vmdebug.deadline import Deadline
from vmdebug.guest import LaunchSpec, RunnerMachine
from vmdebug.process import ProcessRef
from vmdebug.progress import Report, silent
from vmdebug.vm import launching, planning, shellup
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.planning import Means
from vmdebug.vm.saved import freezing, frozen, holders
from vmdebug.vm.saved.freezing import Outcome
from vmdebug.vm.saved.frozen import Frozen
from vmdebug.vm.saved.holders import Entry, Held, How
from vmdebug.vm.saved.nameless import Shared

LEAVE_SECONDS = 10.0
"""How long letting a template go may wait for who joins it just now."""

_FORMAT = 1
"""Raised when a template made by an older vmdebug must not be joined."""


class Template:
    """A template, held until `template`'s block ends.

    Args:
        spec: What its VMs are.
        means: What the host has for it.
        made: What was made of it.
    """

    def __init__(self, spec: LaunchSpec, means: Means, made: Outcome) -> None:
        self.spec = spec
        self._means = means
        self._made = made

    @property
    def how(self) -> How:
        """Which way its VMs are made: "clone", "snapshot", "boot"."""
        return self._made.how

    @property
    def reason(self) -> str:
        """Why not a better way, in words."""
        return self._made.reason

    def clone(
        self,
        *,
        name: str | None = None,
        spare: bool = False,
        lost: Callable[[Vm], None] | None = None,
        report: Report = silent,
        deadline: Deadline,
    ) -> Vm:
        """Return a new VM at its shell; it dies with this process.

        Args:
            name: What it is called; None is the spec's name, with a number where that is taken.
            spare: Whether it is made before somebody needs it: see `vmdebug.vm.saved.spares`.
            lost: Told a VM that does not come to its shell, before that is ended; it may keep it.
            report: Told what takes long.
            deadline: Until when its shell has to answer.

        Raises:
            UsageError: the name is taken.
            LaunchError: QEMU did not start.
            VmError: it does not come to its shell.
            DeadlineError: it took too long. In all these cases nothing is left.
        """
        vm = self._started(name, spare=spare, report=report, deadline=deadline)
        try:
            shellup.come(vm, copy=self._made.frozen is not None, lost=lost, deadline=deadline)
        except BaseException:
            if vm.bound:
                vm.stop(force=True)
            raise
        return vm

    def _started(self, name: str | None, *, spare: bool, report: Report, deadline: Deadline) -> Vm:
        called, exact = name or self.spec.name, name is not None
        if self._made.frozen is not None:
            return frozen.start(
                self._made.frozen,
                name=called,
                bound=True,
                exact_name=exact,
                spare=spare,
                report=report,
                deadline=deadline,
            )
        return launching.launch(
            msgspec.structs.replace(self.spec, name=called),
            bound=True,
            report=report,
            deadline=deadline,
            exact_name=exact,
            start=Start(means=self._means, spare=spare),
        )


@contextlib.contextmanager
def template(
    spec: LaunchSpec,
    *,
    directory: Path | None = None,
    lost: Callable[[Vm], None] | None = None,
    report: Report = silent,
    deadline: Deadline,
) -> Iterator[Template]:
    """Boot a guest to its shell and freeze it; or join a template that another process has made.

    Its memory has no name: it is gone with the last process and the last VM that has it.

    Args:
        spec: The guest; `halt` does not count.
        directory: Where its memory is kept; None is shared memory.
        lost: Told a VM that does not come to its shell, before that is ended; it may keep it.
        report: Told what takes long.
        deadline: Until when it has to be there.

    Raises:
        UsageError: the spec cannot be right.
        HostError: the machine lacks something.
        LaunchError: QEMU did not start.
        VmError: the guest does not come to its shell.
        DeadlineError: it took too long. In all these cases nothing is left.
    """
    spec = msgspec.structs.replace(spec, halt=False)
    means = planning.means(spec, report=report, deadline=deadline)
    place = key(spec, means, directory)
    with contextlib.ExitStack() as held:
        with holders.slot(place, deadline=deadline) as slot:
            found = slot.read()
            made = None if found is None else _joined(found, spec, means)
            if made is None:
                made = freezing.freeze(
                    spec, means, directory=directory, lost=lost, report=report, deadline=deadline
                )
            if made.frozen is not None:
                held.callback(made.frozen.close)
            mine = _mine(made)
            others = () if found is None else found.holders
            slot.write(Entry(how=made.how, reason=made.reason, holders=(*others, mine)))
            held.callback(_leave, place, mine)
        yield Template(spec, means, made)


def key(spec: LaunchSpec, means: Means, directory: Path | None) -> str:
    """Return what tells a template from every other one: the guest, its files, QEMU and vmdebug.

    Args:
        spec: The guest; its name, and what is said about it, do not count.
        means: What the host has for it.
        directory: Where its memory is kept.
    """
    anonymous = msgspec.structs.replace(spec, name="", guest="", notes=(), halt=False)
    initrd = None if isinstance(spec.machine, RunnerMachine) else spec.machine.initrd
    # Not their times: a cache touches what it hands out.
    files = [_digest(path) for path in (spec.kernel.image, initrd) if path is not None]
    words = [str(_FORMAT), means.choice.accel, str(directory), _stamp(means.qemu), *files]
    return hashlib.sha256(guest.encode(anonymous) + "\n".join(words).encode()).hexdigest()[:16]


def _stamp(path: Path) -> str:
    """Return what changes with a file; what is not there is the launch's to complain about."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return f"{path} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    return str(path)


def _digest(path: Path) -> str:
    """Return what changes with a file's content."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
    return str(path)


def _joined(found: Entry, spec: LaunchSpec, means: Means) -> Outcome | None:
    """Return a template that other processes have; None where they have let it go meanwhile."""
    if found.how == "boot":
        return Outcome("boot", found.reason)
    for holder in found.holders:
        whole = _opened(holder, spec, means)
        if whole is not None:
            return Outcome(found.how, found.reason, whole)
    return None


def _opened(holder: Held, spec: LaunchSpec, means: Means) -> Frozen | None:
    with contextlib.ExitStack() as opened:
        fds = []
        for each in holder.files:
            if (fd := each.open()) is None:
                return None
            opened.callback(os.close, fd)
            fds.append(fd)
        opened.pop_all()
    state, log, *ram = fds
    return Frozen(spec=spec, means=means, ram=ram[0] if ram else None, state=state, log=log, name=spec.name)


def _mine(made: Outcome) -> Held:
    me = ProcessRef.of(os.getpid())
    assert me is not None  # noqa: S101 - we are running
    if made.frozen is None:
        return Held(holder=me)
    state, log, ram = made.frozen.state, made.frozen.log, made.frozen.ram
    fds = (state, log) if ram is None else (state, log, ram)
    return Held(holder=me, files=tuple(map(Shared.of, fds)))


def _leave(place: str, mine: Held) -> None:
    with holders.slot(place, deadline=Deadline.after(LEAVE_SECONDS)) as slot:
        slot.leave(mine)
