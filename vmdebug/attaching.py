"""Attaches a GDB to a VM: the one that a person shares, a preloaded one, or a new one."""

from __future__ import annotations

import contextlib

from vmdebug.deadline import Deadline
from vmdebug.debugger import clients, share
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.identity import Wanted
from vmdebug.debugger.ownership import VmOwner
from vmdebug.debugger.preloaded import PreloadedGdb
from vmdebug.vm import Vm

ATTACH_SECONDS = 120.0
"""How long GDB may take to load a kernel's symbols and connect."""

_ATTACHED = "GDB to be attached"
"""What a deadline is for, in its error."""


def attach(
    machine: Vm,
    *,
    preloaded: PreloadedGdb | None = None,
    force: bool = False,
    timeout: float = ATTACH_SECONDS,
) -> Gdb:
    """Return a GDB that is attached to a VM: the shared one (`vmdebug attach --share`), if any.

    Args:
        machine: The VM.
        preloaded: A GDB that already loads the guest's symbols; used if nobody shares one.
        force: Whether to continue with symbols from another build than the running kernel.
        timeout: Seconds.

    Raises:
        VmdebugError: see `DebugSession.gdb`.
    """
    deadline = Deadline.after(timeout)
    lock = machine.rundir.attach_lock
    shared = share.ask(lock, timeout)
    if shared is not None:
        return Gdb.join(
            shared,
            timeout=deadline.left(_ATTACHED),
            interrupter=machine.pause,
            wanted=_wanted(machine, force=force),
        )
    with contextlib.ExitStack() as undo:
        owner = undo.enter_context(VmOwner.claim(lock, machine.name))
        clients.check_free(machine.state.gdb, machine.name)
        gdb = undo.enter_context(_loaded(machine, preloaded, deadline))
        _connect(gdb, machine, owner, force=force, deadline=deadline)
        undo.pop_all()
    return gdb


def reattach(gdb: Gdb, machine: Vm, *, force: bool = False, timeout: float = ATTACH_SECONDS) -> None:
    """Connect a detached GDB to another VM, with the symbols of that VM's kernel.

    Args:
        gdb: The GDB; its breakpoints stay set.
        machine: The VM.
        force: Whether to continue with symbols from another build than the running kernel.
        timeout: Seconds.

    Raises:
        VmdebugError: see `DebugSession.gdb`.
    """
    deadline = Deadline.after(timeout)
    vmlinux = machine.state.spec.kernel.vmlinux
    with contextlib.ExitStack() as undo:
        owner = undo.enter_context(VmOwner.claim(machine.rundir.attach_lock, machine.name))
        if vmlinux is not None:
            gdb.reload(vmlinux, timeout=deadline.left(_ATTACHED))
        _connect(gdb, machine, owner, force=force, deadline=deadline)
        undo.pop_all()


def _loaded(machine: Vm, preloaded: PreloadedGdb | None, deadline: Deadline) -> Gdb:
    """Return an unconnected GDB with the symbols of a VM's kernel."""
    taken = None if preloaded is None else preloaded.take(timeout=deadline.left(_ATTACHED))
    return taken or Gdb.of(machine.state.spec.kernel, timeout=deadline.left(_ATTACHED))


def _connect(gdb: Gdb, machine: Vm, owner: VmOwner, *, force: bool, deadline: Deadline) -> None:
    gdb.connect(
        machine.state.gdb,
        timeout=deadline.left(_ATTACHED),
        owner=owner,
        interrupter=machine.pause,
        wanted=_wanted(machine, force=force),
    )


def _wanted(machine: Vm, *, force: bool) -> Wanted | None:
    """Return the kernel that the guest should run; None if there are no symbols to compare."""
    spec = machine.state.spec
    if spec.kernel.vmlinux is None:
        return None
    return Wanted(
        kernel=spec.kernel,
        accel=machine.state.accel,
        kaslr="nokaslr" not in spec.parameters,
        force=force,
    )
