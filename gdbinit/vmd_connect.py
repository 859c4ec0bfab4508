"""Connects GDB to a guest, and makes sure that its symbols are that guest's."""

from __future__ import annotations

import os

import gdb
import vmd_batch
import vmd_elf
import vmd_guest
import vmd_slide


class Connect(gdb.Command):
    """Connect to a guest's gdbstub: vmd-connect SOCKET|HOST:PORT.

    Proves that the loaded vmlinux is that of the kernel in the guest's memory, if one is
    there already, and moves the symbols to where KASLR has put it. A kernel of another
    build ends GDB with status 4, unless $vmd_force is set.

    When $vmd_kaslr is set and the guest has not mapped its kernel yet, it is run to
    x86_64_start_kernel: breakpoints cannot be placed before that.

    Example: vmd-connect /run/user/1000/vmdebug/builtin/gdb.sock
    """

    NAME = "vmd-connect"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Connect and prove."""
        if not argument:
            vmd_batch.fail("vmd-connect needs a socket or HOST:PORT", vmd_batch.USAGE)
        _keep_lock()
        try:
            gdb.execute(f"target remote {argument}")
        except gdb.error as error:
            vmd_batch.fail(f"cannot connect to the guest at {argument}: {error}\nis it running?")
        if vmd_guest.has_vmlinux():
            _settle()


def _keep_lock() -> None:
    """Keep the lock that says who is attached to this process: what GDB starts must not hold it longer."""
    lock = gdb.convenience_variable("vmd_lock")
    if lock is not None:
        os.set_inheritable(int(lock), False)


def _settle() -> None:
    found = vmd_slide.find()
    if found is None and gdb.convenience_variable("vmd_kaslr") and not vmd_guest.kernel_runs():
        found = _early()
    if found is not None:
        if found.slide != vmd_slide.applied():
            vmd_slide.apply(found.slide)
            vmd_batch.say(f"KASLR: symbols moved by {found.slide:#x}")
        return
    other = vmd_slide.other_kernel()
    if other is not None:
        _mismatch(other.build_id, other.banner)


def _early() -> vmd_slide.Found | None:
    if vmd_guest.accel() == "kvm":
        vmd_batch.say(
            "KASLR: the kernel is not mapped yet, and KVM holds too few breakpoints to wait for it\n"
            "run on, interrupt, then: vmd-slide --apply"
        )
        return None
    found = vmd_slide.run_to_kernel()
    if found is not None:
        vmd_batch.say(f"KASLR: the guest was run to {vmd_slide.FIRST}, where its kernel is first known to be")
    return found


def _mismatch(build_id: str, banner: str) -> None:
    path = vmd_guest.vmlinux()
    notes = vmd_guest.vmlinux_sections().get(".notes")
    ours = vmd_elf.build_id(vmd_elf.content(path, notes)) if notes is not None else ""
    text = (
        "the vmlinux is not that of the running kernel\n"
        f"  vmlinux  {path}\n"
        f"           build-id {ours or 'none'}\n"
        f"  guest    {banner}\n"
        f"           build-id {build_id or 'not found'}"
    )
    if gdb.convenience_variable("vmd_force"):
        vmd_batch.say(f"warning: {text}")
        return
    vmd_batch.say(f"{text}\ngive GDB the guest's own vmlinux, or go on all the same with --force")
    vmd_batch.leave(vmd_batch.MISMATCH)
