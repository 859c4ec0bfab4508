"""Runs the guest to a location, with a time limit."""

from __future__ import annotations

import gdb
import vmd_arch
import vmd_batch
import vmd_connect
import vmd_debuginfo
import vmd_early
import vmd_guest
import vmd_identity
import vmd_patching
import vmd_run
import vmd_similar_symbols
import vmd_slide

PANIC = "panic"
"""Every panic calls it. A kernel without a pvpanic driver does not tell QEMU, and spins."""

_ALREADY_PRINTED = "Command aborted."
"""The text of GDB's error when it has already printed the real one."""


class Until(gdb.Command):
    """Run the guest until LOCATION is reached: vmd-until LOCATION [SECONDS].

    LOCATION is anything that `tbreak` takes. Under KVM ($vmd_accel is "kvm") software
    breakpoints can be inserted only once the kernel is in memory, so the guest first runs to
    a hardware breakpoint at the kernel's first function. After SECONDS the guest is stopped
    wherever it is. The kernel must be the one of the loaded vmlinux, unless $vmd_force is set.

    In batch mode ($vmd_batch is set) GDB exits with status 2 if LOCATION does not exist,
    4 if the kernel is of another build, 5 if the time is over, and 1 if the guest ended or
    stopped elsewhere.

    Example: vmd-until start_kernel 30
    """

    NAME = "vmd-until"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_RUNNING, gdb.COMPLETE_LOCATION)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Run there."""
        location, seconds = _parse(argument)
        vmd_guest.need_connected()
        _refuse_unusable(location)
        try:
            with vmd_run.limited(seconds) as run:
                run.unproven = vmd_guest.has_vmlinux() and not vmd_guest.kernel_runs()
                if vmd_guest.accel() != "tcg" and vmd_early.unmapped():
                    _to_mapped_kernel(location, run)
                _run(location, run)
        except gdb.error as error:
            _lost(location, error)


def _parse(argument: str) -> tuple[str, float | None]:
    words = argument.rsplit(maxsplit=1)
    if not words:
        vmd_batch.fail("vmd-until: no location given\nexample: vmd-until start_kernel 30", vmd_batch.USAGE)
    if len(words) == 1:
        return words[0], None
    try:
        return words[0], float(words[1])
    except ValueError:
        return argument, None


def _refuse_unusable(location: str) -> None:
    arch = vmd_arch.current()
    if location in arch.identity_mapped:
        vmd_batch.fail(
            f"{location} runs before the kernel is mapped, and not at its symbol's address\n"
            f"run to the first function that can be reached: {arch.first_symbols[0]}",
            vmd_batch.USAGE,
        )
    if location == vmd_early.WAITING.passed:
        vmd_batch.fail(
            f"{location} has already begun: KVM cannot stop a kernel that KASLR moves before it\n"
            f"run to a later function: {arch.first_symbols[-1]}",
            vmd_batch.USAGE,
        )
    try:
        gdb.decode_line(_place(location))
    except gdb.error as error:
        vmd_batch.fail(f"{error}{_nearest(location)}", vmd_batch.USAGE)


def _nearest(location: str) -> str:
    if not location.isidentifier():
        return ""
    listing = gdb.execute("maint print msymbols", to_string=True)
    near = vmd_similar_symbols.nearest(location, vmd_similar_symbols.listed(listing))
    return f"\nsimilar symbols: {', '.join(near)}" if near else ""


def _place(location: str) -> str:
    """Return a location; for one of the first functions, which are never inlined, its address.

    For a name GDB sorts all names in its index first.
    """
    at = vmd_slide.address(location) if location in vmd_arch.current().first_symbols else None
    return location if at is None else f"*{at:#x}"


def _to_mapped_kernel(location: str, run: vmd_run.Run) -> None:
    """Run to the kernel's first usable function: software breakpoints can be inserted there."""
    if gdb.convenience_variable("vmd_kaslr"):
        vmd_batch.fail(vmd_early.KASLR_KVM)
    if not vmd_early.WAITING.set("kvm", kaslr=False):
        first = " nor ".join(vmd_arch.current().first_symbols)
        vmd_batch.fail(f"the vmlinux has neither {first}, so vmdebug cannot detect when the kernel is mapped")
    reached = vmd_early.run()
    _prove(run)
    if not reached:
        _missed(location, run, panicked=False)


def _run(location: str, run: vmd_run.Run) -> None:
    waiting = [gdb.Breakpoint(_place(location), type=vmd_patching.kind_of(location), temporary=True)]
    panic = vmd_slide.address(PANIC)
    if panic is not None:
        waiting.append(gdb.Breakpoint(f"*{panic:#x}", internal=True, temporary=True))
    numbers = [each.number for each in waiting]
    here = vmd_early.WAITING.is_here(waiting[0])
    try:
        gdb.execute("frame" if here else "continue")
    finally:
        for each in waiting:
            if each.is_valid():
                each.delete()
    _prove(run)
    if not here and numbers[0] not in run.hit:
        _missed(location, run, panicked=numbers[-1] in run.hit)


def _prove(run: vmd_run.Run) -> None:
    """Refuse symbols of another build. When GDB connected, no kernel was mapped to compare them with."""
    if not run.unproven or run.exited or not vmd_guest.connected():
        return
    verdict = vmd_identity.settle(force=bool(gdb.convenience_variable("vmd_force")))
    run.unproven = verdict.state == vmd_identity.UNMAPPED
    vmd_connect.refuse_other(verdict)


def _missed(location: str, run: vmd_run.Run, *, panicked: bool) -> None:
    """Report what stopped the guest instead."""
    if run.exited or not vmd_guest.connected():
        vmd_batch.fail(f"the guest ended before it reached {location}")
    if panicked:
        words = vmd_guest.text("fmt" if not vmd_debuginfo.missing() else _first_argument())
        vmd_batch.fail(f"the guest panicked before it reached {location}: {words}\n{vmd_run.where()}")
    if run.over:
        vmd_batch.fail(vmd_run.late(location, run), vmd_batch.DEADLINE)
    vmd_batch.fail(f"the guest stopped before it reached {location}\n{vmd_run.where()}")


def _first_argument() -> str:
    """Return the expression for a function's first argument, a string, without debugging information."""
    return f"(char *) ${vmd_arch.current().arguments[0]}"


def _lost(location: str, error: gdb.error) -> None:
    if not vmd_guest.connected():
        # GDB has printed the real error already.
        why = "" if str(error) == _ALREADY_PRINTED else f": {error}"
        vmd_batch.fail(f"the guest ended before it reached {location}{why}")
    if "hardware breakpoint" in str(error):
        held = vmd_arch.current().hardware_breakpoints
        vmd_batch.fail(f"{error}\nKVM holds {held} hardware breakpoints: delete some of yours first")
    vmd_batch.fail(str(error))
