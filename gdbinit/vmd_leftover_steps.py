"""CPUs that QEMU still steps although nobody wants it to: another CPU's breakpoint has cut their step short.

QEMU puts a CPU into single-step mode when GDB steps it, and takes it out when that one stops:
`gdb_vm_state_change` of its gdbstub. Where another stops first, the one that was stepped traps after its next
instruction. While GDB is there, that is a SIGTRAP out of nowhere; once GDB has let go, it halts the whole
guest, with nobody there to set it going.

The SIGTRAP does harm as well where that instruction is one byte long and has a breakpoint, as `push %rbp`
at a function's entry: GDB takes it for the breakpoint's `int3`, puts the PC back by its length, and the
guest executes the instruction twice. See `adjust_pc_after_break` of GDB's infrun.c.

GDB does not tell a step from a continue, so some CPUs are suspected without a cause.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import gdb
import vmd_kgdb
import vmd_monitor

_RETRY_SECONDS = 0.05

_TRIES = 4
"""How often a CPU is tried before the guest is let go of as it is."""


class Steps:
    """The CPUs that may still be stepped, by GDB's numbers; `STEPS` is the only one."""

    def __init__(self) -> None:
        self._owed: set[int] = set()
        self._resumed: int | None = None
        self._connection: int | None = None
        self._tries = 0
        self._aside: list[gdb.Breakpoint] = []

    def resumed(self, _event: gdb.ContinueEvent) -> None:
        """Take note of the CPU that the guest goes on from: a step is that one's."""
        thread = gdb.selected_thread()
        self._resumed = thread.num if thread is not None else None

    def stopped(self, _event: gdb.StopEvent) -> None:
        """Take note of the CPU that has stopped: it is stepped no more."""
        thread = gdb.selected_thread()
        if thread is None:
            return
        connection = thread.inferior.connection_num
        if connection != self._connection:
            self._end()
            self._connection = connection
            _keep_pc()
            if not vmd_kgdb.on():
                self._owed = _left_by_another()
                _hush()
            return
        if vmd_kgdb.on():
            return
        if self._resumed is not None and not self._tries:
            self._owed.add(self._resumed)
        self._owed.discard(thread.num)

    def next(self) -> int | None:
        """Prepare one of them for being freed: whoever calls runs the guest, and interrupts it at once.

        An interrupt takes the CPU out of single-step mode that `Hc` names. Should it trap before, it is out
        as well.

        Returns:
            GDB's number of it; None where no more is to be done.
        """
        threads = {each.num: each for each in gdb.selected_inferior().threads()}
        self._owed &= threads.keys()
        connection = gdb.selected_inferior().connection
        given_up = self._tries >= _TRIES * len(threads)
        if not self._owed or given_up or not isinstance(connection, gdb.RemoteTargetConnection):
            self._end()
            return None
        if not self._tries:
            self._aside = [each for each in gdb.breakpoints() if each.enabled]
            for each in self._aside:
                each.enabled = False
        self._tries += 1
        number = min(self._owed)
        process, cpu, _ = threads[number].ptid
        connection.send_packet(f"Hcp{process:x}.{cpu:x}")
        return number

    def settle(self) -> None:
        """Free all of them, in a GDB that is about to let go of the guest."""
        thread = gdb.selected_thread()
        if thread is None or not thread.is_valid() or thread.is_running():
            return
        moments = Moments()
        # What fails here, such as a guest that has ended meanwhile, is for whoever lets go to tell.
        with contextlib.suppress(gdb.error), gdb.with_parameter("scheduler-locking", "off"), _quiet():
            while self.next() is not None:
                moments.run()
            moments.finish()

    def _end(self) -> None:
        for each in self._aside:
            if each.is_valid():
                each.enabled = True
        self._aside = []
        self._owed.clear()
        self._tries = 0


STEPS = Steps()
gdb.events.cont.connect(STEPS.resumed)
gdb.events.stop.connect(STEPS.stopped)


def _hush() -> None:
    """Have GDB go on by itself from a SIGTRAP that no breakpoint and no step of its own explains.

    A guest of one CPU has none of those, and one that is replayed stops by such a one at its beginning.
    """
    words = "nostop noprint" if len(gdb.selected_inferior().threads()) > 1 else "stop print"
    with gdb.with_parameter("confirm", False):
        gdb.execute(f"handle SIGTRAP {words} nopass", to_string=True)


def _keep_pc() -> None:
    """Have GDB leave the PC alone after a breakpoint: QEMU has put it back, which it does not say.

    kgdb leaves that to GDB; "auto" finds out.
    """
    mode = "auto" if vmd_kgdb.on() else "on"
    gdb.execute(f"set remote swbreak-feature-packet {mode}", to_string=True)


def _left_by_another() -> set[int]:
    """Return the CPUs, if an earlier GDB has left the guest where it stood: any may be one of them."""
    try:
        said = vmd_monitor.ask("info status")
    except gdb.error:
        return set()
    return (
        {each.num for each in gdb.selected_inferior().threads()}
        if any("(debug)" in line for line in said)
        else set()
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Print nothing in the block: no setting silences GDB's word of a signal, and a batch prints data."""
    gdb.flush()
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        gdb.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)


class Moments:
    """Runs the guest for moments, in a GDB whose prompt waits meanwhile.

    At most one interrupt is on its way: what was posted to GDB and not carried out by its end crashes it.
    """

    def __init__(self) -> None:
        self._posted = False

    def run(self) -> None:
        """Run the guest, and interrupt it until it stops: QEMU passes over what comes before it runs."""
        import threading  # noqa: PLC0415 - imported, it has GDB wait for it at its end

        stopped = threading.Event()

        def repeat() -> None:
            # GDB's own thread must get the user's Ctrl-C, so this one takes no signal.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            while not stopped.wait(_RETRY_SECONDS):
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
        """Have GDB carry out what is on its way: it does so while the guest runs."""
        for _ in range(_TRIES):
            if self._posted:
                self.run()

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
    """`-vmd-steps`: prepare for letting go; for which CPU to run and interrupt the guest, "" for none."""
    return {"cpu": str(STEPS.next() or "")}


def let_go() -> None:
    """Have this GDB free them before it lets go of a guest: in one of the host side's, that side does."""
    gdb.events.gdb_exiting.connect(lambda _event: STEPS.settle())
    try:
        gdb.execute("show user hook-detach", to_string=True)  # the user's own stays
    except gdb.error:
        gdb.execute(
            "define hook-detach\npython import vmd_leftover_steps; vmd_leftover_steps.STEPS.settle()\nend"
        )
