"""Templates: boot a guest once, and start any number of VMs that continue from there.

A template makes its VMs in the fastest way that the guest allows. `Template.reason` says why it uses no
faster way:

clone
    Each VM maps the template's RAM copy-on-write; see `vmdebug.vm.clones.saved_guest`.
load
    Each VM loads the saved saved state, which contains the RAM.
boot
    Each VM boots.

Processes that need the same template share one; see `vmdebug.vm.template_registry`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from vmdebug import addressing, guest
from vmdebug.deadline import BOOT_SECONDS, Deadline
from vmdebug.guest import LaunchSpec, OwnMachine
from vmdebug.network import Nic
from vmdebug.process import ProcessRef
from vmdebug.progress import Report, silent
from vmdebug.vm import launching, planning, template_registry, wait_shell
from vmdebug.vm.clones import build, identity, saved_guest
from vmdebug.vm.clones.build import Built
from vmdebug.vm.clones.saved_guest import SavedGuest
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.memfd import SharedFile
from vmdebug.vm.planning import Resources
from vmdebug.vm.template_registry import Entry, Held, How

LEAVE_SECONDS = 10.0
"""How long closing a template may wait for another process that is opening it."""

_FORMAT = 1
"""Increase it when templates made by older versions of vmdebug must not be used."""


class Template:
    """A template, which exists until the block of `template` ends.

    Args:
        spec: The spec of its VMs.
        resources: The host's resources.
        made: The saved guest, or why there is none.
    """

    def __init__(self, spec: LaunchSpec, resources: Resources, made: Built) -> None:
        self.spec = spec
        self._resources = resources
        self._made = made

    @property
    def how(self) -> How:
        """How its VMs are made: "clone", "load" or "boot"."""
        return self._made.how

    @property
    def reason(self) -> str:
        """Why its VMs are not made in a faster way."""
        return self._made.reason

    def clone(
        self,
        *,
        name: str | None = None,
        nics: Sequence[Nic] | None = None,
        hostname: str = "",
        prewarmed: bool = False,
        lost: Callable[[Vm], None] | None = None,
        report: Report = silent,
        timeout: float = BOOT_SECONDS,
    ) -> Vm:
        """Return a new VM at its shell; it ends with this process.

        Args:
            name: Its name; None: the spec's name, with a number if that is taken.
            nics: Its network cards, on other segments than the spec's; None: the spec's.
            hostname: Its host name, if it does not boot; "": that of the template.
            prewarmed: Whether it is prewarmed; see `vmdebug.vm.clones.prewarmed`.
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
        spec = self.spec if nics is None else msgspec.structs.replace(self.spec, nics=tuple(nics))
        vm = self._started(spec, name, prewarmed=prewarmed, report=report, deadline=deadline)
        try:
            wait_shell.wait(vm, copy=self._made.saved is not None, lost=lost, deadline=deadline)
            if self._made.saved is not None:
                # The template itself is on no segment.
                identity.change(vm, addressing.unplugged(spec.nics), hostname=hostname, deadline=deadline)
        except BaseException:
            if vm.bound:
                vm.stop(force=True)
            raise
        return vm

    def _started(
        self, spec: LaunchSpec, name: str | None, *, prewarmed: bool, report: Report, deadline: Deadline
    ) -> Vm:
        called, exact = name or spec.name, name is not None
        if self._made.saved is not None:
            return saved_guest.start(
                self._made.saved,
                name=called,
                nics=spec.nics,
                bound=True,
                exact_name=exact,
                prewarmed=prewarmed,
                report=report,
                deadline=deadline,
            )
        return launching.launch(
            msgspec.structs.replace(spec, name=called),
            bound=True,
            report=report,
            timeout=deadline.left(launching.ANSWER),
            exact_name=exact,
            start=Start(resources=self._resources, prewarmed=prewarmed),
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

    The memory is an unnamed file, which the kernel frees with the last process and VM that use it.

    Args:
        spec: The guest; `halt` is ignored.
        directory: The directory for its memory; None: an unnamed file in memory.
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
    resources = planning.resources(spec, report=report, deadline=deadline)
    place = key(spec, resources, directory)
    with contextlib.ExitStack() as held:
        with template_registry.slot(place, deadline=deadline) as slot:
            found = slot.read()
            made = None if found is None else _shared(found, spec, resources)
            if made is None:
                made = build.build(
                    spec, resources, directory=directory, lost=lost, report=report, deadline=deadline
                )
            if made.saved is not None:
                held.callback(made.saved.close)
            own = _own_entry(made)
            others = () if found is None else found.holders
            slot.write(Entry(how=made.how, reason=made.reason, holders=(*others, own)))
            held.callback(_leave, place, own)
        yield Template(spec, resources, made)


def key(spec: LaunchSpec, resources: Resources, directory: Path | None) -> str:
    """Return a hash of everything that a template depends on: the guest, its files, QEMU and vmdebug.

    Args:
        spec: The guest; its name and notes are ignored.
        resources: The host's resources.
        directory: The directory for its memory.
    """
    nics = addressing.unplugged(spec.nics)
    anonymous = msgspec.structs.replace(spec, name="", guest="", nics=nics, notes=(), halt=False)
    own = (spec.machine.initrd, spec.machine.unified) if isinstance(spec.machine, OwnMachine) else ()
    # Hash the content, because the cache changes the time of a file that it returns.
    files = [_digest(path) for path in (spec.kernel.image, *own) if path is not None]
    words = [str(_FORMAT), resources.choice.accel, str(directory), _stamp(resources.qemu), *files]
    return hashlib.sha256(guest.encode(anonymous) + "\n".join(words).encode()).hexdigest()[:16]


def _stamp(path: Path) -> str:
    """Return text that changes with a file. If it is missing, the launch raises the error."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return f"{path} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    return str(path)


def _digest(path: Path) -> str:
    """Return a hash of a file's content."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
    return str(path)


def _shared(found: Entry, spec: LaunchSpec, resources: Resources) -> Built | None:
    """Return the template of other processes; None if they have closed it meanwhile."""
    if found.how == "boot":
        return Built("boot", found.reason)
    for holder in found.holders:
        saved = _open(holder, spec, resources)
        if saved is not None:
            return Built(found.how, found.reason, saved)
    return None


def _open(holder: Held, spec: LaunchSpec, resources: Resources) -> SavedGuest | None:
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
        spec=spec, resources=resources, ram=ram[0] if ram else None, state=state, log=log, name=spec.name
    )


def _own_entry(made: Built) -> Held:
    me = ProcessRef.me()
    if made.saved is None:
        return Held(holder=me)
    state, log, ram = made.saved.state, made.saved.log, made.saved.ram
    fds = (state, log) if ram is None else (state, log, ram)
    return Held(holder=me, files=tuple(map(SharedFile.of, fds)))


def _leave(place: str, own: Held) -> None:
    with template_registry.slot(place, deadline=Deadline.after(LEAVE_SECONDS)) as slot:
        slot.leave(own)
