"""Clones of a VM that runs: it is held for a moment, and goes on beside them.

Its RAM is QEMU's own, so its whole state is saved first. A QEMU that never runs a guest
loads that with its RAM in a shared file and saves the devices' state once more: then
there is a frozen guest, and any number of clones map its memory; see `vmdebug.vm.saved.frozen`.
Once they have, nobody else needs it: the memory has no name and is gone with the last of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import msgspec

from vmdebug.channel.serial import ready
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, UsageError
from vmdebug.progress import Report, Step, silent
from vmdebug.vm import launching, planning, registry, rundir, shellup
from vmdebug.vm.argv import Origin
from vmdebug.vm.launching import Start
from vmdebug.vm.machine import Vm
from vmdebug.vm.saved import freezing, frozen, nameless
from vmdebug.vm.saved.frozen import Frozen


def clone(vm: Vm, count: int = 1, *, report: Report = silent, deadline: Deadline) -> list[Vm]:
    """Start clones of a VM, which outlive this process; it goes on, or stays stopped, as it was found.

    Args:
        vm: The VM; no GDB is attached to it, and none may be meanwhile.
        count: How many.
        report: Told what takes long.
        deadline: Until when they have to run.

    Returns:
        Them, named NAME-1, NAME-2, … where that is not taken.

    Raises:
        StateError: the VM is at its reset vector, has panicked or ended, or is of a kind that has no copies.
        HostError: there is no room for its memory.
        VmError: its state cannot be saved, or not be loaded. In all these cases no clone is left.
        DeadlineError: it took too long.
    """
    with contextlib.ExitStack() as protected:
        whole = _frozen(vm, report, deadline)
        protected.callback(whole.close)
        made: list[Vm] = []
        with contextlib.ExitStack() as undone:
            for number in range(count):
                report(Step("starting clones", number, count))
                clone = _next(vm.name, whole, deadline)
                undone.callback(clone.stop, force=True)
                made.append(clone)
                if _at_shell(clone):
                    shellup.come(clone, copy=True, deadline=deadline)
            for each in made:
                each.keep()
            undone.pop_all()
    return made


def _frozen(vm: Vm, report: Report, deadline: Deadline) -> Frozen:
    asked = vm.state.spec
    # A port has one listener: clones get free ones.
    spec = msgspec.structs.replace(asked, halt=False, tcp=None if asked.tcp is None else 0)
    if reason := freezing.unable(spec):
        raise StateError(f"{vm.name} cannot be cloned: {reason}", hint="start another one: vmdebug start")
    status = vm.status()
    if status not in ("running", "paused"):
        raise StateError(f"{vm.name} cannot be cloned: it is {status}", hint="clone a guest that has booted")
    means = planning.means(spec, report=report, deadline=deadline)
    report(Step("saving its state", note=vm.name))
    with contextlib.ExitStack() as files:
        ram = _kept(frozen.new_ram(spec, None), files)
        state = _kept(nameless.make("state"), files)
        log = _kept(nameless.make("log"), files)
        whole = nameless.make("whole")
        try:
            with _paused(vm, resume=status == "running"):
                frozen.save(vm, whole, shared=False, deadline=deadline)
                nameless.fill(log, vm.rundir.console_log.read_bytes())
            result = Frozen(spec=spec, means=means, ram=ram, state=state, log=log, name=vm.name)
            _split(whole, result, deadline)
        finally:
            os.close(whole)
        files.pop_all()
    return result


def _split(whole: int, into: Frozen, deadline: Deadline) -> None:
    """Bring a whole state to one of RAM in a file and devices apart, by a QEMU that never runs the guest."""
    assert into.ram is not None  # noqa: S101 - `_frozen` made it
    start = Start(origin=Origin(ram=into.ram, shared=True, incoming=True), fds=(into.ram,), means=into.means)
    named = msgspec.structs.replace(into.spec, name=f"{into.name[:50]}-template", tcp=None)
    with launching.launch(named, bound=True, exact_name=False, start=start, deadline=deadline) as vm:
        frozen.load(vm, whole, shared=False, run=False, deadline=deadline)
        frozen.save(vm, into.state, shared=True, deadline=deadline)


@contextlib.contextmanager
def _paused(vm: Vm, *, resume: bool) -> Iterator[None]:
    """Let the guest go on after the block, if it ran before: saving has stopped it."""
    try:
        yield
    finally:
        if resume:
            vm.resume()


def _next(name: str, whole: Frozen, deadline: Deadline) -> Vm:
    """Start a clone under the first name that is free."""
    for number in itertools.count(1):
        called = f"{name}-{number}"
        rundir.check_name(called)
        if called in registry.names():
            continue
        try:
            return frozen.start(whole, name=called, bound=True, exact_name=True, deadline=deadline)
        except UsageError:
            if called not in registry.names():
                raise
            # taken meanwhile
    raise AssertionError  # the numbers never end


def _at_shell(vm: Vm) -> bool:
    """Say whether a prompt is the last that the guest wrote: nothing is typed into a program that runs."""
    with vm.console() as console:
        return ready.look(console.logged(ready.KEPT)) is ready.Look.PROMPT


def _kept(fd: int, files: contextlib.ExitStack) -> int:
    files.callback(os.close, fd)
    return fd
