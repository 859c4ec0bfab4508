"""Connects GDB to a guest, and checks that the symbols match its kernel."""

from __future__ import annotations

import os

import gdb
import vmd_batch
import vmd_death
import vmd_debuginfo
import vmd_early
import vmd_guest
import vmd_identity
import vmd_kgdb
import vmd_later
import vmd_run
import vmd_settings

USE_ITS_OWN = "load the guest's own vmlinux, or continue anyway: --force"


class Connect(gdb.Command):
    """Connect to a guest's gdbstub: vmd-connect SOCKET|HOST:PORT.

    Checks that the loaded vmlinux is the one of the kernel in guest memory, if a kernel is
    mapped, and moves the symbols to where KASLR has put the kernel. If the kernel is of
    another build, GDB exits with status 4, unless $vmd_force is set.

    If $vmd_kaslr is set and no kernel is mapped yet, runs the guest to the kernel's first C
    function, under KVM into it: the addresses of breakpoints are not known before that.
    $vmd_timeout limits the seconds that this may take.

    Example: vmd-connect /run/user/1000/vmdebug/builtin/gdb.sock
    """

    NAME = "vmd-connect"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Connect and compare."""
        if not argument:
            vmd_batch.fail("vmd-connect: no gdbstub given\ngive a socket or HOST:PORT", vmd_batch.USAGE)
        _keep_lock()
        vmd_settings.adapt()
        try:
            # Over kgdb GDB would show the wrong task, and no symbols before the slide is known.
            with gdb.with_parameter("suppress-cli-notifications", vmd_kgdb.on()):
                gdb.execute(f"target remote {argument}", to_string=vmd_kgdb.on())
        except gdb.error as error:
            if not vmd_guest.connected():
                vmd_batch.fail(f"cannot connect to the guest at {argument}: {error}\nis it running?")
            # GDB has connected. Then hooks of the user's gdbinit run at the first stop; those of gef ask
            # the gdbstub for files of /proc.
            vmd_batch.say(f"a hook of your gdbinit failed at the first stop: {error}")
        if vmd_kgdb.on():
            vmd_kgdb.select_running()
        if vmd_guest.has_vmlinux():
            _settle()
            if vmd_debuginfo.missing():
                vmd_batch.say(vmd_debuginfo.lacking("types, arguments or source lines"))
        if not vmd_kgdb.on():
            vmd_death.tell()
        if vmd_kgdb.stuck_later():
            vmd_batch.say(
                "kgdb: the machine is still booting, and a breakpoint that is set now can never be removed"
                " from its kernel\nboot it with rodata=off, or enter kgdb after it has booted"
            )
        if vmd_kgdb.on():
            gdb.execute("frame")


def _keep_lock() -> None:
    """Prevent programs that GDB starts from inheriting the lock of the attached GDB."""
    lock = gdb.convenience_variable("vmd_lock")
    if lock is not None:
        os.set_inheritable(int(lock), False)


def _settle() -> None:
    force = bool(gdb.convenience_variable("vmd_force"))
    verdict = vmd_identity.settle(force=force)
    if verdict.state == vmd_identity.UNMAPPED and gdb.convenience_variable("vmd_kaslr"):
        verdict = _early(verdict, force=force)
    # They are for the first connection only, not for a later vmd-reconnect.
    for name in ("vmd_until", "vmd_timeout"):
        gdb.set_convenience_variable(name, None)
    if verdict.moved:
        vmd_batch.say(f"KASLR: symbols moved by {verdict.slide:#x}")
    if verdict.state == vmd_identity.OTHER:
        _mismatch(verdict, force=force)
    if verdict.state == vmd_identity.UNMAPPED:
        gdb.events.before_prompt.connect(_tell_unmapped)


def _tell_unmapped(_event: object = None) -> None:
    """At the first prompt, explain what the user sees: no kernel symbols and unreadable memory."""
    gdb.events.before_prompt.disconnect(_tell_unmapped)
    if vmd_guest.connected() and not vmd_guest.kernel_runs():
        vmd_batch.say(
            "the guest has not mapped its kernel yet: you can set breakpoints, but not read kernel memory\n"
            "run to its first C function: vmd-until start_kernel"
        )


def _early(verdict: vmd_identity.Verdict, *, force: bool) -> vmd_identity.Verdict:
    """Run the guest until its kernel is mapped, and on to its first C function, unless it is in it."""
    first = vmd_early.WAITING.set(vmd_guest.accel(), kaslr=True)
    if not first:
        vmd_batch.say(vmd_early.KASLR_KVM)
        return verdict
    if not _run_to_kernel():
        return verdict
    verdict = vmd_identity.settle(force=force)
    if verdict.state != vmd_identity.PROVEN:
        return verdict
    if vmd_early.WAITING.passed:
        vmd_batch.say(f"KASLR: the guest ran into {first}, where the kernel's address is known")
        return verdict
    vmd_early.WAITING.set(vmd_guest.accel(), kaslr=False)
    if _run_to_kernel():
        vmd_batch.say(f"KASLR: the guest ran to {first}, where the kernel's address is known")
    return verdict


def _run_to_kernel() -> bool:
    """Run the guest to where `vmd_early` stops it; return whether it stopped there.

    If `vmd-until` follows, its time limit holds here too.
    """
    seconds, until = gdb.convenience_variable("vmd_timeout"), gdb.convenience_variable("vmd_until")
    with vmd_run.limited(float(seconds) if seconds is not None else None) as run:
        reached = vmd_early.run()
    if run.over:
        what = until.string() if until is not None else "the kernel"
        vmd_batch.fail(vmd_run.late(what, run), vmd_batch.DEADLINE)
    return reached


def _mismatch(verdict: vmd_identity.Verdict, *, force: bool) -> None:
    text = mismatch(verdict)
    if force:
        vmd_batch.say(f"warning: {text}")
        return
    if vmd_later.has_interpreter():
        raise gdb.GdbError(f"{text}\n{USE_ITS_OWN}")  # the client ends GDB
    vmd_batch.say(f"{text}\n{USE_ITS_OWN}")
    vmd_batch.leave(vmd_batch.MISMATCH)


def refuse_other(verdict: vmd_identity.Verdict) -> None:
    """Fail, in a command, if the symbols are those of another build; only warn if $vmd_force is set."""
    if verdict.state != vmd_identity.OTHER:
        return
    words = mismatch(verdict)
    if not gdb.convenience_variable("vmd_force"):
        vmd_batch.fail(f"{words}\n{USE_ITS_OWN}", vmd_batch.MISMATCH)
    vmd_batch.say(f"warning: {words}")


def mismatch(verdict: vmd_identity.Verdict) -> str:
    """Return the message for a vmlinux of another build, with both build-ids."""
    return (
        "the vmlinux does not match the running kernel\n"
        f"  vmlinux  {vmd_guest.vmlinux()}\n"
        f"           build-id {verdict.build_id or 'none'}\n"
        f"  guest    {verdict.banner}\n"
        f"           build-id {verdict.theirs or 'not found'}"
    )
