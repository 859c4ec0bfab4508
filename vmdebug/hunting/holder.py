"""Holds CPUs of a guest that runs, by QEMU's gdbstub: it stops all at a point, and sets all but one running.

No CPU is held longer than its hold says, plus the time that QEMU takes for a stop: the holder waits for the
point of release with a deadline, and sets all CPUs running when it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, VmdebugError, VmError
from vmdebug.hunting.holds import Hold
from vmdebug.hunting.stub import Stub

ANSWER_SECONDS = 20.0
"""How long QEMU may take to answer, or to stop its CPUs."""

LOOK_SECONDS = 0.02
"""How often to look whether the run has ended, while no CPU gets to a point."""

MOST_PASSES = 20
"""How often CPUs pass a point before the next one is held whichever it is: each time costs a stop."""

_OURS = ("T05", "T02")
"""How the stops begin at a breakpoint or after a step, and after an interrupt; others have other signals."""

_CPU = re.compile(r"thread:(?:p[0-9a-f]+\.)?([0-9a-f]+)")


class Point(msgspec.Struct, frozen=True):
    """A place in the kernel's code.

    Args:
        name: As the user gave it.
        addresses: Its addresses.
    """

    name: str
    addresses: tuple[int, ...]


class _EndedError(VmError):
    """The run has ended, or the guest has died."""


class Holder:
    """Holds CPUs during a block, in a thread of its own.

    Args:
        stub: The connection to the gdbstub of a stopped guest; nobody else uses it during the block.
        points: The points.
        holds: What to do.
        cpus: How many CPUs the guest has.
    """

    def __init__(self, stub: Stub, points: Sequence[Point], holds: Iterable[Hold], *, cpus: int) -> None:
        self.done: list[str] = []
        """The holds that there were, in words."""
        self._stub = stub
        self._points = points
        self._holds = holds
        self._cpus = cpus
        self._ended = threading.Event()
        self._inserted: set[int] = set()
        self._running = self._all_run = self._died = False
        self._error: VmdebugError | None = None
        self._thread = threading.Thread(target=self._run, name="vmdebug-holds", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Set all CPUs running.

        Raises:
            VmError: QEMU did not do what it was asked.
        """
        self._ended.set()
        self._thread.join(4 * ANSWER_SECONDS)
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with contextlib.suppress(_EndedError):
                self._go()
                for hold in self._holds:
                    self._do(hold)
        except GuestDiedError:
            self._died = True  # the script sees it, too
        except VmdebugError as error:
            self._error = error
        with contextlib.suppress(VmdebugError):  # QEMU has ended
            self._release()

    def _do(self, hold: Hold) -> None:
        self._wait(hold.pause / 1000)
        self._insert(self._points[hold.point])
        cpu = self._held(hold)
        until = None if hold.until is None else self._points[hold.until]
        self._remove()
        if until is not None:
            self._insert(until)
        began = time.monotonic()
        other = self._others_run(cpu, hold.milliseconds / 1000)
        if other is not None:
            self._remove()
            self._others_run(cpu, hold.lag / 1000)
        took = 1000 * (time.monotonic() - began)
        self._release()
        self.done.append(self._told(hold, cpu, other, took))

    def _told(self, hold: Hold, cpu: int, other: int | None, took: float) -> str:
        words = f"CPU {cpu} held at {self._points[hold.point].name} for {took:.0f} ms"
        if other is None or hold.until is None:
            return words
        return f"{words}, until CPU {other} came to {self._points[hold.until].name} and {hold.lag} ms further"

    def _held(self, hold: Hold) -> int:
        """Return the CPU that has come to the point and is to be held there; all CPUs are stopped."""
        passed = 0
        while True:
            cpu = self._hit(None)
            assert cpu is not None  # noqa: S101 - it waits until there is one
            if passed >= MOST_PASSES or (hold.cpu in (None, cpu) and passed >= hold.passes):
                return cpu
            passed += 1
            self._pass(cpu)

    def _pass(self, cpu: int) -> None:
        """Have a CPU execute the instruction at the breakpoint where it is, and set all running."""
        inserted = self._inserted
        self._remove()
        self._stub.step(cpu)
        self._stopped()
        self._insert(Point("", tuple(inserted)))
        self._go()

    def _others_run(self, cpu: int, seconds: float) -> int | None:
        """Have all CPUs but one run; return the CPU that gets to a point within the time, or None."""
        self._stub.resume_only([each for each in range(self._cpus) if each != cpu])
        self._running = True
        return self._hit(seconds)

    def _hit(self, seconds: float | None) -> int | None:
        """Wait until a CPU gets to a point, which stops all; after so many seconds stop all, and return None.

        Raises:
            _EndedError: the run has ended.
        """
        end = Deadline.after(seconds if seconds is not None else 1e9)
        while not end.passed:
            if self._ended.is_set():
                raise _EndedError("the run has ended")
            stop = self._stub.stopped(min(LOOK_SECONDS, end.remaining))
            if stop is not None:
                return self._cpu_of(stop)
        self._stop()
        return None

    def _cpu_of(self, stop: str) -> int:
        self._running = self._all_run = False
        self._check(stop)
        found = _CPU.search(stop)
        if found is None:
            raise VmError(f"QEMU does not say which CPU stopped: {stop}")
        return int(found[1], 16) - 1

    def _check(self, stop: str) -> None:
        """Raise if the guest has stopped by itself; it then stays as it is."""
        if not stop.startswith(_OURS):
            self._died = True
            raise _EndedError(f"the guest stopped: {stop}")

    def _wait(self, seconds: float) -> None:
        """Let all CPUs run for a time, without points."""
        if self._ended.wait(seconds):
            raise _EndedError("the run has ended")

    def _insert(self, point: Point) -> None:
        was = self._running
        self._stop()
        for address in point.addresses:
            self._stub.insert(address, deadline=Deadline.after(ANSWER_SECONDS))
        self._inserted = set(point.addresses)
        if was:
            self._go()

    def _remove(self) -> None:
        for address in self._inserted:
            self._stub.remove(address, deadline=Deadline.after(ANSWER_SECONDS))
        self._inserted = set()

    def _release(self) -> None:
        """Remove all points, and set all CPUs running, unless the guest has stopped by itself."""
        if self._died or (self._all_run and not self._inserted):
            return
        self._stop()
        self._remove()
        self._go()

    def _go(self) -> None:
        self._stub.resume()
        self._running = self._all_run = True

    def _stop(self) -> None:
        """Stop all CPUs; one may get to a point at the same moment, and comes to it again."""
        if self._running:
            self._stub.interrupt()
            self._stopped()

    def _stopped(self) -> None:
        stop = self._stub.stopped(ANSWER_SECONDS)
        if stop is None:
            raise VmError(f"QEMU did not stop the guest's CPUs within {ANSWER_SECONDS:g} s")
        self._running = self._all_run = False
        self._check(stop)
