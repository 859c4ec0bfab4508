"""A thread that detects failures of a test's guest: kernel trouble, a killed QEMU, a passed deadline.

It waits for all of them in one poll(2). After the test, it also reads the kernel's log, in guest memory or
with dmesg(1), for trouble that the console did not show because of `quiet` or a full disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

import pytest

from vmdebug.channel.log.trouble import Trouble, as_logged, unseen
from vmdebug.channel.log.watcher import Watcher
from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import StateError, VmdebugError
from vmdebug.plugin.guest_dmesg import GuestDmesg
from vmdebug.plugin.settings import DIED
from vmdebug.vm import Vm, children
from vmdebug.vm.hidden_death import LOOK_SECONDS
from vmdebug.vm.kernel_log import KernelLog

SETTLE_SECONDS = 1.0
"""How long the kernel may take to print the rest of a splat, before the test is ended."""

GATHER_SECONDS = 0.02
"""How long console output gathers before it is read."""

END_SECONDS = 1.0
"""How long a test that kills its own QEMU may take to remove the run directory."""


class GuestFailure(pytest.fail.Exception):  # type: ignore[name-defined,misc] # a class attribute of a function
    """The test failed because of its guest; no `except Exception` in the test catches it."""

    # As for pytest's own outcomes, so that reports do not print a module before the name.
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
        self._console = Watcher(vm.rundir.console_log)
        self._log = KernelLog(vm)
        self._dmesg = GuestDmesg(vm)
        self._hidden: list[Trouble] = []
        self._stopped_by = ""
        self._lock = threading.Lock()
        self._until: Deadline | None = None
        self._seen = 0
        self._due: GuestFailure | None = None
        self._leaving = False
        self._wake = -1
        self._thread = threading.Thread(target=self._run, name="vmdebug-watch", daemon=True)

    def __enter__(self) -> Self:
        """Start to watch.

        Raises:
            FileNotFoundError: the VM has ended.
        """
        self._held.enter_context(self._console)
        self._held.enter_context(self._log)
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
            self._console.settle(Deadline.after(SETTLE_SECONDS))
            self._read_log()
            return as_logged((*self._shown, *self._hidden), self._logged)

    def look(self) -> None:
        """Look for trouble that the console does not show, in the kernel's log and with QMP."""
        with self._lock:
            self._console.poll()
            seen = len(self._hidden)
            self._read_log()
            refused = [each for each in self._hidden[seen:] if each.kind not in self._allow]
            if refused:
                self._set_due(f"{_words(refused)}\nthe console did not show it; it is in the kernel's log")
            elif self._stopped_by and DIED not in self._allow:
                self._set_due(f"QEMU has stopped {self._vm.name}: its state is {self._stopped_by}")

    def _read_log(self) -> None:
        """Record trouble in the kernel's log that the console does not show."""
        deadline = Deadline.after(LOOK_SECONDS)
        with contextlib.suppress(VmdebugError):  # QEMU has ended
            try:
                state = self._log.look(deadline=deadline)
            except StateError:
                # The log cannot be found in memory, but QEMU knows whether the guest has panicked.
                state = self._vm.qmp("query-status", timeout=LOOK_SECONDS)["status"]
                with contextlib.suppress(VmdebugError):  # the guest is stopped, or does not answer
                    self._dmesg.look(deadline=deadline)
            self._hidden += unseen(self._logged, (*self._shown, *self._hidden))
            self._take_state(state)

    @property
    def _logged(self) -> tuple[Trouble, ...]:
        """The trouble in the kernel's log so far."""
        return (*self._log.troubles, *self._dmesg.troubles)

    def _take_state(self, state: str) -> None:
        """Record QEMU's run state: a panic may not have reached the console or the log."""
        self._stopped_by = state if state in _FAILED else ""
        known = (*self._shown, *self._hidden)
        if state == "guest-panicked" and not any(each.kind == "panic" for each in known):
            words = "the guest has panicked: QEMU's state is guest-panicked"
            self._hidden.append(Trouble(kind="panic", headline=words, text=words, complete=True))

    @property
    def _shown(self) -> tuple[Trouble, ...]:
        """The trouble on the console so far."""
        return self._console.troubles

    def until(self, deadline: Deadline | None) -> None:
        """Set the deadline of the test; None removes it."""
        self._until = deadline
        os.eventfd_write(self._wake, 1)

    def failure(self) -> GuestFailure | None:
        """Return the failure of the guest that `settled` has not confirmed yet; None if there is none."""
        self._new_trouble()
        return self._due

    def settled(self) -> None:
        """Confirm that the failure has failed the test."""
        self._due = None

    def _new_trouble(self) -> GuestFailure | None:
        """Return the failure for the splats since the last look; None if all are allowed."""
        with self._lock:
            self._console.poll()
            if not self._refused():
                return None
            # The first line is enough to fail the test; the report needs the whole splat.
            self._console.settle(Deadline.after(SETTLE_SECONDS))
            refused = self._refused()
            self._seen = len(self._console.troubles)
            return self._set_due(_words(refused))

    def _set_due(self, words: str) -> GuestFailure:
        """Return a failure, and keep it for `failure`, unless there is an earlier one."""
        failure = GuestFailure(words, pytrace=True)
        self._due = self._due or failure
        return failure

    def _refused(self) -> list[Trouble]:
        new = unseen(self._console.troubles[self._seen :], self._hidden)
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
                found = self._new_trouble() or (self._death() if qemu in ready else None) or self._late()
                if found is not None:
                    self._alarm(found)
        finally:
            if qemu is not None:
                os.close(qemu)

    def _late(self) -> GuestFailure | None:
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
        name = signal.Signals(-status).name
        return self._set_due(f"QEMU of {self._vm.name} was killed by {name}")

    def _stopping(self) -> bool:
        end = Deadline.after(END_SECONDS)
        while not end.passed and not self._leaving and self._vm.rundir.path.exists():
            if wait_ready(self._wake, seconds=_STEP_SECONDS):
                os.eventfd_read(self._wake)
        return self._leaving or not self._vm.rundir.path.exists()


_STEP_SECONDS = 0.02

_FAILED = ("internal-error", "io-error")
"""QEMU's run states for a guest that it cannot continue; see `RunState` of qemu-qmp-ref."""


def _words(troubles: list[Trouble]) -> str:
    first, *more = troubles
    others = f" (and {len(more)} more)" if more else ""
    return f"kernel {first.kind}: {first.headline}{others}"
