"""Adapts a person's GDB to KVM: early breakpoints work, and breakpoints that cannot work are reported.

Under KVM, GDB writes software breakpoints to guest memory, which a halted guest has not mapped yet:
`continue` would fail with "Cannot access memory". So it first runs the guest to where its kernel is mapped.
"""

from __future__ import annotations

import contextlib

import gdb
import vmd_arch
import vmd_batch
import vmd_connect
import vmd_early
import vmd_guest
import vmd_identity
import vmd_modules
import vmd_patching

_HARDWARE = (
    gdb.BP_HARDWARE_BREAKPOINT,
    gdb.BP_HARDWARE_WATCHPOINT,
    gdb.BP_READ_WATCHPOINT,
    gdb.BP_ACCESS_WATCHPOINT,
)


class BeforeContinue(gdb.Command):
    """Before `continue` under KVM, run the guest to where its kernel is mapped: vmd-before-continue.

    `continue` calls it. It does nothing if the kernel is mapped, or no software breakpoint is set.
    """

    NAME = "vmd-before-continue"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING)

    def invoke(self, _argument: str, _from_tty: bool) -> None:
        """Run there."""
        _before_continue()


def register() -> None:
    """Have `continue` call this module, unless the user has defined a hook for it."""
    with contextlib.suppress(gdb.error):
        gdb.execute("show user hook-continue", to_string=True)
        return
    BeforeContinue()
    gdb.execute(f"define hook-continue\n{BeforeContinue.NAME}\nend", to_string=True)


def _before_continue() -> None:
    """Run to where the kernel is mapped, if it is not, and the user has software breakpoints in it.

    Raises:
        gdb.GdbError: the guest stopped elsewhere, or at a breakpoint of the user; `continue` does nothing.
    """
    if vmd_guest.accel() != "kvm" or not vmd_guest.connected() or vmd_early.WAITING.pending:
        return
    if not any(each.enabled and each.type == gdb.BP_BREAKPOINT for each in gdb.breakpoints()):
        return
    if not vmd_early.unmapped():
        return
    if gdb.convenience_variable("vmd_kaslr"):
        raise gdb.GdbError(vmd_early.KASLR_KVM)
    if not vmd_early.WAITING.set("kvm", kaslr=False):
        return
    if not vmd_early.run():
        _stopped_elsewhere()
    vmd_connect.refuse_other(vmd_identity.settle(force=bool(gdb.convenience_variable("vmd_force"))))
    vmd_modules.WATCH.set()
    here = [each.number for each in gdb.breakpoints() if each.enabled and vmd_early.WAITING.is_here(each)]
    if here:
        gdb.execute("frame")
        raise gdb.GdbError(f"Breakpoint {here[0]} is here")


def _stopped_elsewhere() -> None:
    if not vmd_guest.connected():
        raise gdb.GdbError("the guest ended before it mapped its kernel")
    gdb.execute("frame")
    raise gdb.GdbError("the guest stopped before it mapped its kernel; breakpoints in it are not inserted")


def _count(_created: gdb.Breakpoint) -> None:
    """Warn of more hardware breakpoints than KVM can hold: GDB reports them only when the guest runs."""
    arch = vmd_arch.known() if vmd_guest.accel() == "kvm" else None
    if arch is None:
        return
    used = sum(each.enabled and each.type in _HARDWARE for each in gdb.breakpoints())
    if used > arch.hardware_breakpoints:
        vmd_batch.say(
            f"KVM holds {arch.hardware_breakpoints} hardware breakpoints and watchpoints, the CPU's debug"
            f" registers, and {used} are enabled: the guest cannot run with them\n"
            "delete one; use `break`, which needs none; or start the guest with --accel tcg"
        )


def _warn(created: gdb.Breakpoint) -> None:
    """Say when the kernel rewrites the instruction at a software breakpoint."""
    what = vmd_patching.need_hardware(created) if created.visible else ""
    if what:
        vmd_batch.say(
            f"breakpoint {created.number} is at {what}, which the kernel rewrites: under KVM it is lost then,"
            " or stops the kernel with a BUG\n"
            f"use one of the CPU's debug registers: delete {created.number}, then: hbreak {created.location}"
        )


gdb.events.breakpoint_created.connect(_count)
gdb.events.breakpoint_created.connect(_warn)
