"""A thread beside a test that sees its guest fail: trouble on the console, a killed QEMU, a passed deadline.

It waits in poll(2) for whichever comes first, and does nothing meanwhile.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

import pytest

from vmdebug.channel.serial.trouble import Trouble
from vmdebug.channel.serial.watcher import Watcher
from vmdebug.deadline import Deadline
from vmdebug.plugin.settings import DIED
from vmdebug.vm import Vm, children

SETTLE_SECONDS = 1.0
"""How long the kernel may take to finish what it complains about, before the test is ended for it."""

GATHER_MILLISECONDS = 20
"""How long what the console says gathers before it is read."""

END_SECONDS = 1.0
"""How long a test that kills its own QEMU may take to say so."""


class GuestFailure(pytest.fail.Exception):  # type: ignore[name-defined,misc] # a class attribute of a function
    """The test failed because of its guest; no `except Exception` of a test's keeps it from ending."""

    # As pytest's own outcomes have it: in reports it has no module in front.
    __module__ = "builtins"


class Watch:
    """Watches one VM, as a context manager.

    Args:
        vm: The VM.
        allow: Kinds of trouble that are no failure.
        alarm: Told the failure, in the watching thread.
    """

    def __init__(self, vm: Vm, *, allow: Collection[str], alarm: Callable[[GuestFailure], None]) -> None:
        self._vm = vm
        self._allow = frozenset(allow)
        self._alarm = alarm
        self._console = Watcher(vm.rundir.console_log)
        self._lock = threading.Lock()
        self._until: Deadline | None = None
        self._seen = 0
        self._due: GuestFailure | None = None
        self._leaving = False
        self._wake = -1
        self._thread = threading.Thread(target=self._run, name="vmdebug-watch", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch.

        Raises:
            FileNotFoundError: the VM has gone.
        """
        self._console.__enter__()
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
        self._console.__exit__(None, None, None)

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """All that the kernel has complained about, allowed or not, told as far as it goes."""
        with self._lock:
            return self._console.settle(Deadline.after(SETTLE_SECONDS))

    def until(self, deadline: Deadline | None) -> None:
        """Raise the alarm at a deadline too; None: no more."""
        self._until = deadline
        os.eventfd_write(self._wake, 1)

    def failure(self) -> GuestFailure | None:
        """Return what the guest has done by now that fails its test, and has not by `settled`."""
        self._complaint()
        return self._due

    def settled(self) -> None:
        """What was due has failed the test."""
        self._due = None

    def _complaint(self) -> GuestFailure | None:
        """Return what the kernel has complained about since the last look."""
        with self._lock:
            self._console.poll()
            if not self._refused():
                return None
            # The first lines are enough to know; its report is to have all of it.
            self._console.settle(Deadline.after(SETTLE_SECONDS))
            refused = self._refused()
            self._seen = len(self._console.troubles)
            return self._owed(_words(refused))

    def _owed(self, words: str) -> GuestFailure:
        """Return a failure, which is due from here on, unless another one is."""
        failure = GuestFailure(words, pytrace=True)
        self._due = self._due or failure
        return failure

    def _refused(self) -> list[Trouble]:
        return [each for each in self._console.troubles[self._seen :] if each.kind not in self._allow]

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._console.fileno(), select.POLLIN)
        leaving = select.poll()
        leaving.register(self._wake, select.POLLIN)
        qemu = self._pidfd()
        if qemu is not None:
            poll.register(qemu, select.POLLIN)
        try:
            while not self._leaving:
                ready = {fd for fd, _ in poll.poll(self._milliseconds())}
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    continue
                if self._console.fileno() in ready:
                    # QEMU writes byte by byte: reading at each would take the test's CPU time, and its GIL.
                    leaving.poll(GATHER_MILLISECONDS)
                if qemu in ready:
                    poll.unregister(qemu)
                found = self._complaint() or (self._death() if qemu in ready else None) or self._late()
                if found is not None:
                    self._alarm(found)
        finally:
            if qemu is not None:
                os.close(qemu)

    def _milliseconds(self) -> float | None:
        until = self._until
        return None if until is None else max(0.0, 1000 * (until.at - Deadline.after(0).at))

    def _late(self) -> GuestFailure | None:
        until = self._until
        if until is None or not until.passed:
            return None
        self._until = None
        return self._owed(f"the test has taken more than {until.seconds:g} s, its vmdebug timeout")

    def _pidfd(self) -> int | None:
        try:
            return os.pidfd_open(self._vm.state.pid)
        except ProcessLookupError:
            return None

    def _death(self) -> GuestFailure | None:
        """Return the failure that a QEMU's death is; one that ended by itself, as at a reboot, is none."""
        # Not by waitid(2): the start of the next test's guest, in another thread, may have reaped it.
        status = children.status(self._vm.state.pid)
        if status is None or status >= 0 or DIED in self._allow:
            return None
        # Our own `stop` reaps it; then it was killed on purpose.
        if self._stopping():
            return None
        name = signal.Signals(-status).name
        return self._owed(f"QEMU of {self._vm.name} was killed by {name}")

    def _stopping(self) -> bool:
        end = Deadline.after(END_SECONDS)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not end.passed and not self._leaving and self._vm.rundir.path.exists():
            if poll.poll(_STEP_MILLISECONDS):
                os.eventfd_read(self._wake)
        return self._leaving or not self._vm.rundir.path.exists()


_STEP_MILLISECONDS = 20


def _words(troubles: list[Trouble]) -> str:
    first, *more = troubles
    others = f" (and {len(more)} more)" if more else ""
    return f"kernel {first.kind}: {first.headline}{others}"
