"""Templates: a guest is booted once, and any number of VMs continue from there.

A VM of a template is made in the fastest way that the guest allows; `Template.reason` says why
not in a faster one:

clone
    The RAM is shared memory, which each VM maps copy-on-write: `vmdebug.vm.clones.saved_guest`.
load
    The whole state is saved, RAM included, and each VM loads it.
boot
    Each VM boots.

Processes that need the same template share one: `vmdebug.vm.template_registry`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vmdebug import guest
from vmdebug.deadline import BOOT_SECONDS, Deadline
from vmdebug.guest import LaunchSpec, RunnerMachine
from vmdebug.process import ProcessRef
from vmdebug.progress import Report, silent
from vmdebug.vm import launching, planning, shellup, template_registry
from vmdebug.vm.clones import build, saved_guest
from vmdebug.vm.clones.build import Built
from vmdebug.vm.clones.saved_guest import SavedGuest
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.memfd import SharedFile
from vmdebug.vm.planning import Means
from vmdebug.vm.template_registry import Entry, Held, How

LEAVE_SECONDS = 10.0
"""How long closing a template may wait for a process that opens it just now."""

_FORMAT = 1
"""Increased when a template made by an older vmdebug must not be used."""


class Template:
    """A template, which exists until the block of `template` ends.

    Args:
        spec: The guest of its VMs.
        means: What the host has for it.
        made: The saved guest, or why there is none.
    """

    def __init__(self, spec: LaunchSpec, means: Means, made: Built) -> None:
        self.spec = spec
        self._means = means
        self._made = made

    @property
    def how(self) -> How:
        """How its VMs are made: "clone", "load", "boot"."""
        return self._made.how

    @property
    def reason(self) -> str:
        """Why its VMs are not made in a faster way, in words."""
        return self._made.reason

    def clone(
        self,
        *,
        name: str | None = None,
        prewarmed: bool = False,
        lost: Callable[[Vm], None] | None = None,
        report: Report = silent,
        timeout: float = BOOT_SECONDS,
    ) -> Vm:
        """Return a new VM at its shell; it ends with this process.

        Args:
            name: Its name; None is the spec's name, with a number where that is taken.
            prewarmed: Whether it is made before it is needed: see `vmdebug.vm.clones.prewarmed`.
            lost: Called with a VM whose shell does not answer, before that VM is ended; may keep it.
            report: Called with each step that takes long.
            timeout: Seconds until its shell has to answer.

        Raises:
            UsageError: the name is taken.
            LaunchError: QEMU did not start.
            VmError: its shell does not answer.
            DeadlineError: it took too long. In all these cases nothing is left.
        """
        deadline = Deadline.after(timeout)
        vm = self._started(name, prewarmed=prewarmed, report=report, deadline=deadline)
        try:
            shellup.come(vm, copy=self._made.saved is not None, lost=lost, deadline=deadline)
        except BaseException:
            if vm.bound:
                vm.stop(force=True)
            raise
        return vm

    def _started(self, name: str | None, *, prewarmed: bool, report: Report, deadline: Deadline) -> Vm:
        called, exact = name or self.spec.name, name is not None
        if self._made.saved is not None:
            return saved_guest.start(
                self._made.saved,
                name=called,
                bound=True,
                exact_name=exact,
                prewarmed=prewarmed,
                report=report,
                deadline=deadline,
            )
        return launching.launch(
            msgspec.structs.replace(self.spec, name=called),
            bound=True,
            report=report,
            timeout=deadline.left(launching.ANSWER),
            exact_name=exact,
            start=Start(means=self._means, prewarmed=prewarmed),
        )


@contextlib.contextmanager
def template(
    spec: LaunchSpec,
    *,
    directory: Path | None = None,
    lost: Callable[[Vm], None] | None = None,
    report: Report = silent,
    timeout: float = BOOT_SECONDS,
) -> Iterator[Template]:
    """Boot a guest to its shell and save it, or use the template of another process.

    The memory is an unnamed file: the kernel frees it with the last process and the last VM that use it.

    Args:
        spec: The guest; `halt` is ignored.
        directory: Where its memory is kept; None is shared memory.
        lost: Called with a VM whose shell does not answer, before that VM is ended; may keep it.
        report: Called with each step that takes long.
        timeout: Seconds until the guest has booted and is saved.

    Raises:
        UsageError: the spec is wrong.
        HostError: the machine lacks something.
        LaunchError: QEMU did not start.
        VmError: the guest's shell does not answer.
        DeadlineError: it took too long. In all these cases nothing is left.
    """
    deadline = Deadline.after(timeout)
    spec = msgspec.structs.replace(spec, halt=False)
    means = planning.means(spec, report=report, deadline=deadline)
    place = key(spec, means, directory)
    with contextlib.ExitStack() as held:
        with template_registry.slot(place, deadline=deadline) as slot:
            found = slot.read()
            made = None if found is None else _shared(found, spec, means)
            if made is None:
                made = build.build(
                    spec, means, directory=directory, lost=lost, report=report, deadline=deadline
                )
            if made.saved is not None:
                held.callback(made.saved.close)
            mine = _mine(made)
            others = () if found is None else found.holders
            slot.write(Entry(how=made.how, reason=made.reason, holders=(*others, mine)))
            held.callback(_leave, place, mine)
        yield Template(spec, means, made)


def key(spec: LaunchSpec, means: Means, directory: Path | None) -> str:
    """Return a hash of all that makes a template: the guest, its files, QEMU and vmdebug.

    Args:
        spec: The guest; its name and notes are ignored.
        means: What the host has for it.
        directory: Where its memory is kept.
    """
    anonymous = msgspec.structs.replace(spec, name="", guest="", notes=(), halt=False)
    initrd = None if isinstance(spec.machine, RunnerMachine) else spec.machine.initrd
    # Their content and not their times: the cache touches a file when it returns it.
    files = [_digest(path) for path in (spec.kernel.image, initrd) if path is not None]
    words = [str(_FORMAT), means.choice.accel, str(directory), _stamp(means.qemu), *files]
    return hashlib.sha256(guest.encode(anonymous) + "\n".join(words).encode()).hexdigest()[:16]


def _stamp(path: Path) -> str:
    """Return text that changes with a file; that a file is missing is the launch's error to raise."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return f"{path} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    return str(path)


def _digest(path: Path) -> str:
    """Return a hash of a file's content."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
    return str(path)


def _shared(found: Entry, spec: LaunchSpec, means: Means) -> Built | None:
    """Return the template of other processes; None where they have closed it meanwhile."""
    if found.how == "boot":
        return Built("boot", found.reason)
    for holder in found.holders:
        whole = _open(holder, spec, means)
        if whole is not None:
            return Built(found.how, found.reason, whole)
    return None


def _open(holder: Held, spec: LaunchSpec, means: Means) -> SavedGuest | None:
    with contextlib.ExitStack() as opened:
        fds = []
        for each in holder.files:
            if (fd := each.open()) is None:
                return None
            opened.callback(os.close, fd)
            fds.append(fd)
        opened.pop_all()
    state, log, *ram = fds
    return SavedGuest(
        spec=spec, means=means, ram=ram[0] if ram else None, state=state, log=log, name=spec.name
    )


def _mine(made: Built) -> Held:
    me = ProcessRef.me()
    if made.saved is None:
        return Held(holder=me)
    state, log, ram = made.saved.state, made.saved.log, made.saved.ram
    fds = (state, log) if ram is None else (state, log, ram)
    return Held(holder=me, files=tuple(map(SharedFile.of, fds)))


def _leave(place: str, mine: Held) -> None:
    with template_registry.slot(place, deadline=Deadline.after(LEAVE_SECONDS)) as slot:
        slot.leave(mine)
