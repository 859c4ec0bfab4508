"""CPUs that QEMU leaves in single-step mode because another CPU stopped before their step was complete.

QEMU puts a CPU into single-step mode when GDB steps it. When the guest stops, `gdb_vm_state_change` takes
only the CPU that reports the stop out of that mode (gdbstub.c up to QEMU 7.2, gdbstub/softmmu.c in 8.x,
gdbstub/system.c since; seen with 7.2.22; we know of no upstream report). If another CPU stops first, the
stepped CPU traps after its next instruction. While GDB is attached, that is an unexplained SIGTRAP; after GDB
has detached, it stops the whole guest, which then stays stopped.

The SIGTRAP also does harm if that instruction is one byte long and has a breakpoint, such as `push %rbp` at a
function's entry: GDB interprets it as the trap of the breakpoint instruction, moves the PC back by its
length, and the guest executes the instruction twice. See `adjust_pc_after_break` of GDB's infrun.c.

GDB's Python events do not distinguish a step from a continue, so this module also lists CPUs that are not in
single-step mode.
"""

from __future__ import annotations

import contextlib
import signal

import gdb
import vmd_kgdb
import vmd_monitor
import vmd_quiet

_RETRY_SECONDS = 0.05

_TRIES = 4
"""Number of attempts for a CPU; after that GDB detaches without it."""


class Steps:
    """The CPUs that may still be in single-step mode, by GDB's numbers; `STEPS` is the only instance."""

    def __init__(self) -> None:
        self._stepped: set[int] = set()
        self._resumed: int | None = None
        self._connection: int | None = None
        self._tries = 0
        self._disabled: list[gdb.Breakpoint] = []

    def resumed(self, _event: gdb.ContinueEvent) -> None:
        """Note the CPU that GDB resumes the guest from: if this is a step, it is a step of this CPU."""
        thread = gdb.selected_thread()
        self._resumed = thread.num if thread is not None else None

    def stopped(self, _event: gdb.StopEvent) -> None:
        """Note the CPU that reports the stop: QEMU has taken it out of single-step mode."""
        thread = gdb.selected_thread()
        if thread is None:
            return
        connection = thread.inferior.connection_num
        if connection != self._connection:
            self._end()
            self._connection = connection
            _keep_pc()
            if not vmd_kgdb.on():
                self._stepped = _left_by_another()
                _ignore_sigtrap()
            return
        if vmd_kgdb.on():
            return
        if self._resumed is not None and not self._tries:
            self._stepped.add(self._resumed)
        self._stepped.discard(thread.num)

    def next(self) -> int | None:
        """Select the next CPU to take out of single-step mode; the caller then runs and interrupts the guest.

        An interrupt takes the CPU that `Hc` names out of single-step mode. If the CPU traps before, that does
        so too.

        Returns:
            GDB's number of the CPU; None if none is left.
        """
        threads = {each.num: each for each in gdb.selected_inferior().threads()}
        self._stepped &= threads.keys()
        connection = gdb.selected_inferior().connection
        failed = self._tries >= _TRIES * len(threads)
        if not self._stepped or failed or not isinstance(connection, gdb.RemoteTargetConnection):
            self._end()
            return None
        if not self._tries:
            self._disabled = [each for each in gdb.breakpoints() if each.enabled]
            for each in self._disabled:
                each.enabled = False
        self._tries += 1
        number = min(self._stepped)
        process, cpu, _ = threads[number].ptid
        connection.send_packet(f"Hcp{process:x}.{cpu:x}")
        return number

    def settle(self) -> None:
        """Take all CPUs out of single-step mode before this GDB detaches."""
        thread = gdb.selected_thread()
        if thread is None or not thread.is_valid() or thread.is_running():
            return
        moments = ShortRuns()
        # If this fails, for example because the guest has ended, the detach that follows reports it.
        with (
            contextlib.suppress(gdb.error),
            gdb.with_parameter("scheduler-locking", "off"),
            vmd_quiet.quiet(),
        ):
            while self.next() is not None:
                moments.run()
            moments.finish()

    def _end(self) -> None:
        for each in self._disabled:
            if each.is_valid():
                each.enabled = True
        self._disabled = []
        self._stepped.clear()
        self._tries = 0


STEPS = Steps()
gdb.events.cont.connect(STEPS.resumed)
gdb.events.stop.connect(STEPS.stopped)


def _ignore_sigtrap() -> None:
    """Make GDB resume after a SIGTRAP that neither a breakpoint nor a step of GDB explains.

    A guest with one CPU has no such SIGTRAPs, and a replayed guest stops with one at its beginning.
    """
    words = "nostop noprint" if len(gdb.selected_inferior().threads()) > 1 else "stop print"
    with gdb.with_parameter("confirm", False):
        gdb.execute(f"handle SIGTRAP {words} nopass", to_string=True)


def _keep_pc() -> None:
    """Tell GDB not to adjust the PC after a breakpoint: QEMU has adjusted it, but does not announce that.

    kgdb leaves the adjustment to GDB; "auto" detects which is right.
    """
    mode = "auto" if vmd_kgdb.on() else "on"
    gdb.execute(f"set remote swbreak-feature-packet {mode}", to_string=True)


def _left_by_another() -> set[int]:
    """Return all CPUs if an earlier GDB has left the guest stopped: each may be in single-step mode."""
    try:
        said = vmd_monitor.ask("info status")
    except gdb.error:
        return set()
    return (
        {each.num for each in gdb.selected_inferior().threads()}
        if any("(debug)" in line for line in said)
        else set()
    )


class ShortRuns:
    """Runs the guest for short moments while GDB's prompt waits.

    At most one interrupt is pending at a time: GDB crashes if it ends with posted events that it has not run.
    """

    def __init__(self) -> None:
        self._posted = False

    def run(self, seconds: float = _RETRY_SECONDS) -> None:
        """Run the guest and interrupt it until it stops: QEMU ignores an interrupt that comes too early.

        Args:
            seconds: After this time each, another interrupt follows.
        """
        import threading  # noqa: PLC0415 - once imported, GDB waits for it at exit

        stopped = threading.Event()

        def repeat() -> None:
            # GDB's own thread must receive the user's Ctrl-C, so this thread blocks all signals.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            while not stopped.wait(seconds):
                self._post()

        self._post()
        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            gdb.execute("continue", to_string=True)
        finally:
            stopped.set()
            thread.join()

    def finish(self) -> None:
        """Let GDB run pending interrupts: it runs them while the guest runs.

        On a busy machine another one follows before the guest has stopped, and is pending then, unless it
        follows later and later.
        """
        for number in range(1, _TRIES + 1):
            if self._posted:
                self.run(_RETRY_SECONDS * 4**number)

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            gdb.post_event(self._interrupt)

    def _interrupt(self) -> None:
        self._posted = False
        thread = gdb.selected_thread()
        if thread is not None and thread.is_valid() and thread.is_running():
            gdb.execute("interrupt")


def next_() -> dict[str, object]:
    """`-vmd-steps`: before a detach, the CPU for which to run and interrupt the guest; "" for none."""
    return {"cpu": str(STEPS.next() or "")}
