"""The tools for whole VMs: start, status, stop, snapshots."""

from __future__ import annotations

import contextlib
from typing import Annotated, Literal

from pydantic import Field

from vmdebug.channel.log import kept, messages
from vmdebug.deadline import LAUNCH_SECONDS
from vmdebug.errors import VmdebugError
from vmdebug.faces.mcp.calls import Call
from vmdebug.faces.mcp.guests import Permitted
from vmdebug.faces.mcp.machines import Held
from vmdebug.faces.mcp.results import Done, Machine, Overview, Snapshots, Text
from vmdebug.guest_options import StartOptions
from vmdebug.vm import Vm
from vmdebug.vm.machine import SNAPSHOT_SECONDS

VmName = Annotated[str | None, Field(description="The VM; not needed if there is only one.")]
Tag = Annotated[str, Field(description="The snapshot's name: letters, digits and _ . -")]
Seconds = Annotated[float, Field(description="Seconds after which the call fails.", gt=0, le=86400)]
Lines = Annotated[int, Field(description="Number of lines from the end.", ge=1, le=100_000)]


class Vms:
    """The tools.

    Args:
        permitted: The guests that may be started.
    """

    def __init__(self, permitted: Permitted) -> None:
        self._permitted = permitted

    def start(
        self,
        call: Call,
        guest: Annotated[
            str | None, Field(description="One of `guests` in the result of `status`; none: the default.")
        ] = None,
        name: Annotated[str | None, Field(description="Name for the VM; none: the guest's.")] = None,
        *,
        halt: Annotated[
            bool, Field(description="Stop at the reset vector, for breakpoints in the kernel's boot.")
        ] = False,
        append: Annotated[str, Field(description="Kernel parameters to add.")] = "",
        kaslr: Annotated[bool, Field(description="Randomise the kernel's address.")] = False,
        memory: Annotated[str | None, Field(description="Guest RAM: 512M, 2G.")] = None,
        cpus: Annotated[int | None, Field(description="Number of CPUs.", ge=1)] = None,
        accel: Annotated[Literal["auto", "kvm", "tcg"] | None, Field(description="The accelerator.")] = None,
        timeout: Seconds = LAUNCH_SECONDS,
    ) -> Machine:
        """Start a guest in a new VM, which ends with this server; it boots while you go on.

        Returns once QEMU answers. The first `exec` waits for the boot.
        """
        given = {"name": name, "append": append, "memory": memory, "cpus": cpus, "accel": accel}
        wanted = StartOptions(**{key: value for key, value in given.items() if value})  # type: ignore[typeddict-item]
        if halt:
            wanted["halt"] = True
        if kaslr:
            wanted["kaslr"] = True
        options = self._permitted.options(guest, wanted)
        held = call.machines.start(options, report=call.report, timeout=timeout)
        if call.cancelled.is_set():
            call.machines.stop(held.session.name)
        call.check()
        return _machine(held)

    def status(self, call: Call) -> Overview:
        """List the VMs that you may use, and the guests that you may start."""
        return Overview(tuple(map(_machine, call.machines.every())), self._permitted.names())

    def stop(self, call: Call, vm: VmName = None) -> Done:
        """End a VM that this server has started, as a power failure does."""
        return Done(f"ended {call.machines.stop(vm)}")

    def log(self, call: Call, vm: VmName = None, lines: Lines = 100) -> Text:
        """Return the end of the guest's serial console, also of a guest that has died."""
        path = call.machines.find(vm).session.vm.rundir.console_log
        _, said = kept.read(path)
        text = messages.tail(said, len(said))
        return _end(text, lines)

    def snapshot(
        self, call: Call, tag: Tag, vm: VmName = None, timeout: Seconds = SNAPSHOT_SECONDS
    ) -> Snapshots:
        """Save the state of a VM: memory, CPUs, disks. Afterwards the guest runs or is stopped, as before."""
        with call.machines.using(vm, call.tool) as held:
            held.session.snapshot(tag, timeout=timeout)
            return Snapshots(held.session.name, _tags(held.session.vm))

    def restore(
        self, call: Call, tag: Tag, vm: VmName = None, timeout: Seconds = SNAPSHOT_SECONDS
    ) -> Snapshots:
        """Go back to a snapshot, also after a panic. Breakpoints stay set; commands of `exec` are lost."""
        with call.machines.using(vm, call.tool) as held:
            held.session.restore(tag, timeout=timeout)
            held.jobs.clear()
            return Snapshots(held.session.name, _tags(held.session.vm))


def _machine(held: Held) -> Machine:
    machine, gdb = held.session.vm, held.session.attached
    spec = machine.state.spec
    return Machine(
        name=machine.name,
        status=machine.status(),
        guest=spec.guest,
        release=spec.kernel.release or "",
        build_id=spec.kernel.build_id or "",
        accel=machine.state.accel,
        has_symbols=spec.kernel.vmlinux is not None,
        started_here=held.started,
        gdb="not attached" if gdb is None else "stopped" if gdb.stopped else "running",
        snapshots=_tags(machine),
        notes=held.session.notes,
    )


def _tags(machine: Vm) -> tuple[str, ...]:
    with contextlib.suppress(VmdebugError):  # QEMU has ended, or is busy
        return tuple(each.tag for each in machine.snapshots())
    return ()


def _end(text: str, lines: int) -> Text:
    every = text.splitlines()
    return Text("\n".join(every[-lines:]), max(0, len(every) - lines))
