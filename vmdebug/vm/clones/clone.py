"""Clones a running VM, which is paused for a moment and then continues.

The VM's RAM is private memory of its QEMU, so its whole state is saved first. A second QEMU, which does not
run the guest, loads that state with its RAM in a file, and saves only the devices' state. Then any number of
clones map that file; see `vmdebug.vm.clones.saved_guest`. The file has no name, and the kernel frees it with
the last clone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import msgspec

from vmdebug import addressing, network
from vmdebug.channel.log import kept
from vmdebug.channel.serial import ready
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, UsageError
from vmdebug.guest import LaunchSpec
from vmdebug.network import Nic
from vmdebug.progress import Report, Step, silent
from vmdebug.spelling import option
from vmdebug.vm import launching, memfd, planning, registry, rundir, wait_shell
from vmdebug.vm.argv import InitialState
from vmdebug.vm.clones import build, identity, saved_guest
from vmdebug.vm.clones.saved_guest import SavedGuest
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm

ANSWER_SECONDS = 1.0
"""How long a clone's agent may take to answer. Nothing is typed into a clone without an agent and a
prompt."""


def clone(
    vm: Vm, count: int = 1, *, new_identity: bool = False, report: Report = silent, timeout: float
) -> list[Vm]:
    """Start clones of a VM, which outlive this process; the VM runs or stays stopped as before.

    Args:
        vm: The VM; no GDB may be attached to it.
        count: Number of clones.
        new_identity: Whether each clone gets its name as host name, and on bridges and segments a MAC address
            and an IP address of its own. Otherwise it is not connected to bridges and segments, where the
            original has these addresses.
        report: Called with each step that takes long.
        timeout: Seconds until all of them run.

    Returns:
        The clones, named NAME-1, NAME-2, …; names that are taken are skipped.

    Raises:
        StateError: the VM is at its reset vector, has panicked or ended, or cannot be cloned.
        HostError: there is not enough space for its memory.
        VmError: its state cannot be saved or loaded.
        DeadlineError: it took too long. In all these cases no clone is left.
    """
    deadline = Deadline.after(timeout)
    with contextlib.ExitStack() as protected:
        saved = _saved(vm, report, deadline)
        protected.callback(saved.close)
        made: list[Vm] = []
        with contextlib.ExitStack() as undone:
            for number in range(count):
                report(Step("starting clones", number, count))
                clone = _next(vm.name, saved, _network(saved, new_identity=new_identity), deadline)
                undone.callback(clone.stop, force=True)
                made.append(clone)
                identity.cut_off(clone)
                clone.resume()
                if clone.shell.answers(deadline.at_most(ANSWER_SECONDS)) or _at_shell(clone):
                    wait_shell.wait(clone, copy=True, deadline=deadline)
                if new_identity:
                    identity.change(clone, saved.spec.nics, hostname=clone.name, deadline=deadline)
            for each in made:
                each.keep()
            undone.pop_all()
    return made


def _instead(spec: LaunchSpec) -> str:
    """Return what to do if a guest cannot be cloned."""
    if spec.shared:
        return (
            f"start it with {option('root_image', 'always')} for its root, and without {option('share')}:"
            " `vmdebug cp` copies files"
        )
    return "start another one: vmdebug start"


def _saved(vm: Vm, report: Report, deadline: Deadline) -> SavedGuest:
    asked = vm.state.spec
    # Only one VM can listen on a port: each clone gets a free one.
    tcp = None if asked.tcp is None else 0
    spec = msgspec.structs.replace(asked, halt=False, tcp=tcp, nics=network.free_ports(asked.nics))
    if reason := build.obstacle(spec):
        raise StateError(f"{vm.name} cannot be cloned: {reason}", hint=_instead(spec))
    status = vm.status()
    if status not in ("running", "paused"):
        raise StateError(f"{vm.name} cannot be cloned: it is {status}", hint="clone a guest that has booted")
    resources = planning.resources(spec, report=report, deadline=deadline)
    report(Step("saving its state", note=vm.name))
    with contextlib.ExitStack() as files:
        result = saved_guest.new(files, spec, resources, name=vm.name)
        saved = memfd.create("saved")
        try:
            with _paused(vm, resume=status == "running"):
                saved_guest.save(vm, saved, shared=False, deadline=deadline)
                memfd.write(result.log, kept.read(vm.rundir.console_log).data)
            _split(saved, result, deadline)
        finally:
            os.close(saved)
        files.pop_all()
    return result


def _split(saved: int, into: SavedGuest, deadline: Deadline) -> None:
    """Split a whole state into RAM and devices, with a QEMU that does not run the guest."""
    assert into.ram is not None  # noqa: S101 - `_saved` made it
    start = Start(
        initial=InitialState(ram=into.ram, shared=True, incoming=True),
        fds=(into.ram,),
        resources=into.resources,
    )
    name, nics = f"{into.name[:50]}-template", addressing.unplugged(into.spec.nics)
    named = msgspec.structs.replace(into.spec, name=name, tcp=None, nics=nics)
    with launching.launch(
        named, bound=True, exact_name=False, start=start, timeout=deadline.left(launching.ANSWER)
    ) as vm:
        saved_guest.load(vm, saved, shared=False, run=False, deadline=deadline)
        saved_guest.save(vm, into.state, shared=True, deadline=deadline)


@contextlib.contextmanager
def _paused(vm: Vm, *, resume: bool) -> Iterator[None]:
    """Set the guest running after the block, if it ran before; saving stops it."""
    try:
        yield
    finally:
        if resume:
            vm.resume()


def _network(saved: SavedGuest, *, new_identity: bool) -> tuple[Nic, ...]:
    """Return the network cards of a clone."""
    if new_identity:
        return tuple(map(addressing.another, saved.spec.nics))
    return tuple(addressing.unplugged([nic])[0] if nic.kind == "segment" else nic for nic in saved.spec.nics)


def _next(name: str, saved: SavedGuest, nics: tuple[Nic, ...], deadline: Deadline) -> Vm:
    """Start a clone under the first name that is free; it does not run yet."""
    for number in itertools.count(1):
        called = f"{name}-{number}"
        rundir.check_name(called)
        if called in registry.names():
            continue
        try:
            return saved_guest.start(
                saved, name=called, nics=nics, bound=True, run=False, exact_name=True, deadline=deadline
            )
        except UsageError:
            if called not in registry.names():
                raise
            # Another process has taken the name meanwhile.
    raise AssertionError  # there is always another number


def _at_shell(vm: Vm) -> bool:
    """Return whether the console shows a prompt, and no program would read typed text."""
    with vm.console() as console:
        return ready.look(console.line.logged(ready.KEPT)) is ready.Look.PROMPT
