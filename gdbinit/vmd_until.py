"""Runs the guest to a location, with a time limit."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import gdb
import vmd_arch
import vmd_batch
import vmd_connect
import vmd_guest
import vmd_identity
import vmd_similar_symbols
import vmd_slide

PANIC = "panic"
"""Every panic calls it. A kernel without a pvpanic driver does not tell QEMU, and spins."""

_SAID = "Command aborted."
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
            with _deadline(seconds) as run:
                run.unproven = vmd_guest.has_vmlinux() and not vmd_guest.kernel_runs()
                unmapped = vmd_guest.accel() != "tcg" and not vmd_guest.kernel_runs()
                if not unmapped or _to_mapped_kernel(run) != location:
                    _run(location, run, hardware=False)
        except gdb.error as error:
            _lost(location, error)


class _Guest:
    """One run with a time limit, and what ended it."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.over = False
        self.unproven = False
        self.exited = False
        self.hit: list[int] = []

    def interrupt(self) -> None:
        """Stop the guest, on GDB's own thread."""
        thread = gdb.selected_thread()
        if thread is not None and thread.is_running():
            self.over = True
            gdb.execute("interrupt")


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
    try:
        gdb.decode_line(location)
    except gdb.error as error:
        vmd_batch.fail(f"{error}{_nearest(location)}", vmd_batch.USAGE)


def _nearest(location: str) -> str:
    if not location.isidentifier():
        return ""
    listing = gdb.execute("maint print msymbols", to_string=True)
    near = vmd_similar_symbols.nearest(location, vmd_similar_symbols.listed(listing))
    return f"\nsimilar symbols: {', '.join(near)}" if near else ""


def _to_mapped_kernel(run: _Guest) -> str:
    """Run to the kernel's first usable function, with software breakpoints disabled until then."""
    names = vmd_arch.current().first_symbols
    first = next((name for name in names if gdb.lookup_global_symbol(name) is not None), names[-1])
    software = [each for each in gdb.breakpoints() if each.enabled and each.type == gdb.BP_BREAKPOINT]
    for each in software:
        each.enabled = False
    try:
        _run(first, run, hardware=True)
    finally:
        for each in software:
            if each.is_valid():
                each.enabled = True
    return first


def _run(location: str, run: _Guest, *, hardware: bool) -> None:
    kind = gdb.BP_HARDWARE_BREAKPOINT if hardware else gdb.BP_BREAKPOINT
    waiting = [gdb.Breakpoint(location, type=kind, temporary=True)]
    if not hardware and gdb.lookup_global_symbol(PANIC) is not None:
        waiting.append(gdb.Breakpoint(PANIC, internal=True, temporary=True))
    numbers = [each.number for each in waiting]
    try:
        gdb.execute("continue")
    finally:
        for each in waiting:
            if each.is_valid():
                each.delete()
    _prove(run)
    if numbers[0] not in run.hit:
        _missed(location, run, panicked=numbers[-1] in run.hit)


def _prove(run: _Guest) -> None:
    """Refuse symbols of another build. When GDB connected, no kernel was mapped to compare them with."""
    if not run.unproven or run.exited or not vmd_guest.connected():
        return
    verdict = vmd_identity.settle(force=bool(gdb.convenience_variable("vmd_force")))
    run.unproven = verdict.state == vmd_identity.UNMAPPED
    if verdict.state != vmd_identity.OTHER:
        return
    words = vmd_connect.mismatch(verdict)
    if not gdb.convenience_variable("vmd_force"):
        vmd_batch.fail(f"{words}\n{vmd_connect.USE_ITS_OWN}", vmd_batch.MISMATCH)
    vmd_batch.say(f"warning: {words}")


def _missed(location: str, run: _Guest, *, panicked: bool) -> None:
    """Report what stopped the guest instead."""
    if run.exited or not vmd_guest.connected():
        vmd_batch.fail(f"the guest ended before it reached {location}")
    if panicked:
        words = vmd_guest.text("fmt")
        vmd_batch.fail(f"the guest panicked before it reached {location}: {words}\n{_where()}")
    if run.over:
        late = f"{location} was not reached within {run.seconds:g} s"
        vmd_batch.fail(f"{late}\n{_where()}{_elsewhere()}", vmd_batch.DEADLINE)
    vmd_batch.fail(f"the guest stopped before it reached {location}\n{_where()}")


def _lost(location: str, error: gdb.error) -> None:
    if not vmd_guest.connected():
        # GDB has printed the real error already.
        why = "" if str(error) == _SAID else f": {error}"
        vmd_batch.fail(f"the guest ended before it reached {location}{why}")
    if "hardware breakpoint" in str(error):
        held = vmd_arch.current().hardware_breakpoints
        vmd_batch.fail(f"{error}\nKVM holds {held} hardware breakpoints: delete some of yours first")
    vmd_batch.fail(str(error))


def _where() -> str:
    frame = gdb.newest_frame()
    return f"it is at {frame.pc():#x} in {frame.name() or '??'}"


def _elsewhere() -> str:
    found = vmd_slide.find() if vmd_guest.has_vmlinux() else None
    if found is None or found.slide == vmd_slide.applied():
        return ""
    return "\nKASLR has moved the kernel; move the symbols too: vmd-slide --apply"


@contextlib.contextmanager
def _deadline(seconds: float | None) -> Iterator[_Guest]:
    """Record what stops the guest, and stop it after `seconds`."""
    import threading  # noqa: PLC0415 - once imported, GDB waits for it at exit

    run = _Guest(seconds)
    ended = threading.Event()

    def stopped(event: gdb.StopEvent) -> None:
        # A temporary breakpoint no longer exists when `continue` returns.
        hit = event.breakpoints if isinstance(event, gdb.BreakpointEvent) else ()
        run.hit = [each.number for each in hit]

    def exited(_event: gdb.ExitedEvent) -> None:
        run.exited = True

    def wait() -> None:
        # GDB's own thread must receive the user's Ctrl-C, so this thread blocks all signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if not ended.wait(seconds):
            gdb.post_event(run.interrupt)

    gdb.events.stop.connect(stopped)
    gdb.events.exited.connect(exited)
    watch = threading.Thread(target=wait, daemon=True)
    if seconds is not None:
        watch.start()
    try:
        yield run
    finally:
        ended.set()
        if seconds is not None:
            watch.join()
        gdb.events.exited.disconnect(exited)
        gdb.events.stop.disconnect(stopped)
