"""A thread that detects failures of a test's guest: kernel trouble, a killed QEMU, a passed deadline.

It waits for all of them in one poll(2). After the test, it also reads the kernel's log, in guest memory or
with dmesg(1), for trouble that the console did not show because of `quiet` or a full disk.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from types import TracebackType
from typing import Self

import pytest

from vmdebug.channel.log.trouble import Kind, Trouble, in_words, unseen
from vmdebug.deadline import Deadline, wait_ready
from vmdebug.plugin.markers import DIED
from vmdebug.vm import Vm, children, guest_status
from vmdebug.vm.kernel_trouble import SETTLE_SECONDS, KernelTrouble

GATHER_SECONDS = 0.02
"""How long to let console output accumulate before reading it."""

END_SECONDS = 1.0
"""How long a test that kills its own QEMU may take to remove the run directory."""


class GuestFailure(pytest.fail.Exception):  # type: ignore[name-defined,misc] # a class attribute of a function
    """The test failed because of its guest; no `except Exception` in the test catches it."""

    # pytest's own outcomes do the same, so that reports do not print a module before the name.
    __module__ = "builtins"


class FailureWatch:
    """Watches one VM, as a context manager.

    Args:
        vm: The VM.
        allow: Kinds of trouble that do not fail the test.
        alarm: Called with the failure, in the watching thread.
    """

    def __init__(self, vm: Vm, *, allow: Collection[str], alarm: Callable[[GuestFailure], None]) -> None:
        self._vm = vm
        self._allow = frozenset(allow)
        self._alarm = alarm
        self._held = contextlib.ExitStack()
        self._kernel = KernelTrouble(vm)
        self._console = self._kernel.console
        self._lock = threading.Lock()
        self._until: Deadline | None = None
        self._seen = 0
        self._due: GuestFailure | None = None
        self._deferring = False
        self._deferred: list[Trouble] = []
        self._reported: list[Trouble] = []
        self._leaving = False
        self._wake = -1
        self._thread = threading.Thread(target=self._run, name="vmdebug-watch", daemon=True)

    def __enter__(self) -> Self:
        """Start to watch.

        Raises:
            FileNotFoundError: the VM has ended.
        """
        self._held.enter_context(self._kernel)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        self._held.close()

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """All splats of the kernel so far, allowed or not; the last ones may be incomplete."""
        with self._lock:
            return self._kernel.all()

    def of_kind(self, kind: Kind) -> tuple[Trouble, ...]:
        """Return the trouble of a kind so far."""
        return tuple(each for each in self.troubles if each.kind == kind)

    def look(self) -> None:
        """Look for trouble that the console does not show, in the kernel's log and with QMP."""
        with self._lock:
            seen = len(self._kernel.hidden)
            self._kernel.look()
            refused = [each for each in self._kernel.hidden[seen:] if each.kind not in self._allow]
            refused = [*unseen(refused, self._reported)]
            stopped = self._kernel.stopped_by
            if refused:
                self._set_due(f"{in_words(refused)}\nthe console did not show it; it is in the kernel's log")
            elif stopped and DIED not in self._allow:
                self._set_due(f"QEMU has stopped {self._vm.name}: its state is {stopped}")

    def until(self, deadline: Deadline | None) -> None:
        """Set the time at which the test fails with a timeout; None removes it."""
        self._until = deadline
        os.eventfd_write(self._wake, 1)

    def failure(self) -> GuestFailure | None:
        """Return the failure of the guest; None if there is none, or `settled` was called for it."""
        self._new_trouble()
        left, self._deferred = unseen(self._deferred, self._reported), []
        if left:
            self._set_due(in_words(left))
        return self._due

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """Do not raise kernel trouble of the block; `failure` returns it, unless it is `reported` before."""
        self._deferring = True
        try:
            yield
        finally:
            with self._lock:
                self._console.settle(Deadline.after(SETTLE_SECONDS))
                self._deferred += self._refused()
                self._seen = len(self._console.troubles)
                self._deferring = False

    def reported(self, troubles: Iterable[Trouble]) -> None:
        """Forget kernel trouble that something else reports."""
        self._reported += troubles

    def settled(self) -> None:
        """Forget the failure, because the test has failed with it."""
        self._due = None

    def _new_trouble(self) -> GuestFailure | None:
        """Return the failure for the splats since the last call; None if the test allows all of them."""
        with self._lock:
            self._console.poll()
            if self._deferring or not self._refused():
                return None
            # The first line is enough to fail the test; the report needs the whole splat.
            self._console.settle(Deadline.after(SETTLE_SECONDS))
            refused = self._refused()
            self._seen = len(self._console.troubles)
            return self._set_due(in_words(refused))

    def _set_due(self, message: str) -> GuestFailure:
        """Return a failure, and keep it for `failure`, unless there is an earlier one."""
        failure = GuestFailure(message, pytrace=True)
        self._due = self._due or failure
        return failure

    def _refused(self) -> list[Trouble]:
        new = unseen(self._console.troubles[self._seen :], self._kernel.hidden)
        return [each for each in new if each.kind not in self._allow]

    def _run(self) -> None:
        qemu = self._pidfd()
        watched = -1 if qemu is None else qemu
        try:
            while not self._leaving:
                until = self._until
                seconds = None if until is None else until.remaining
                ready = wait_ready(self._wake, self._console.fileno(), watched, seconds=seconds)
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    continue
                if self._console.fileno() in ready:
                    # QEMU writes byte by byte; reading each would cost CPU time and the GIL.
                    wait_ready(self._wake, seconds=GATHER_SECONDS)
                if qemu in ready:
                    watched = -1
                found = self._new_trouble() or (self._death() if qemu in ready else None) or self._timed_out()
                if found is not None:
                    self._alarm(found)
        finally:
            if qemu is not None:
                os.close(qemu)

    def _timed_out(self) -> GuestFailure | None:
        until = self._until
        if until is None or not until.passed:
            return None
        self._until = None
        return self._set_due(f"the test has taken more than {until.seconds:g} s, its vmdebug timeout")

    def _pidfd(self) -> int | None:
        try:
            return os.pidfd_open(self._vm.state.pid)
        except ProcessLookupError:
            return None

    def _death(self) -> GuestFailure | None:
        """Return the failure for a killed QEMU; None if it exited by itself, for example at a reboot."""
        # Do not use waitid(2): the thread that starts the next test's guest may have reaped it.
        status = children.status(self._vm.state.pid)
        if status is None or status >= 0 or DIED in self._allow:
            return None
        # `Vm.stop` kills QEMU intentionally, and removes the run directory.
        if self._stopping():
            return None
        how = guest_status.killed(self._vm.state, -status)
        return self._set_due(f"QEMU of {self._vm.name} {how}")

    def _stopping(self) -> bool:
        end = Deadline.after(END_SECONDS)
        while not end.passed and not self._leaving and self._vm.rundir.path.exists():
            if wait_ready(self._wake, seconds=_STEP_SECONDS):
                os.eventfd_read(self._wake)
        return self._leaving or not self._vm.rundir.path.exists()


_STEP_SECONDS = 0.02
