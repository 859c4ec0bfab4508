"""Runs the guest with a time limit, and records what stopped it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import gdb
import vmd_guest
import vmd_slide


class Run:
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


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[Run]:
    """Record what stops the guest, and stop it after `seconds`."""
    import threading  # noqa: PLC0415 - once imported, GDB waits for it at exit

    run = Run(seconds)
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


def late(location: str, run: Run) -> str:
    """Return the message for a location that was not reached in time."""
    return f"{location} was not reached within {run.seconds:g} s\n{where()}{_elsewhere()}"


def where() -> str:
    """Return where the guest has stopped, in words."""
    frame = gdb.newest_frame()
    return f"it is at {frame.pc():#x} in {frame.name() or '??'}"


def _elsewhere() -> str:
    found = vmd_slide.find() if vmd_guest.has_vmlinux() else None
    if found is None or found.slide == vmd_slide.applied():
        return ""
    return "\nKASLR has moved the kernel; move the symbols too: vmd-slide --apply"
