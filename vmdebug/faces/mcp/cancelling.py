"""Lets a cancelled call end its wait for the guest's shell."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator

from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.watch import Debugger


class Cancellable:
    """The debugger of a shell, for one call: what waits for a stop of the guest also waits for `cancel`.

    A command that was begun meanwhile keeps this object; after `end` it is the debugger alone.

    Args:
        debugger: The shell's debugger, or None.
        check: Raises if the call is cancelled.
    """

    def __init__(self, debugger: Debugger | None, check: Callable[[], None]) -> None:
        self._debugger = debugger
        self._check = check
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._both = select.epoll()
        for descriptor in (self._woken.fileno(), self._stops):
            if descriptor >= 0:
                self._both.register(descriptor, select.EPOLLIN)

    @property
    def _stops(self) -> int:
        return -1 if self._debugger is None else self._debugger.fileno()

    def cancel(self) -> None:
        """End the wait; called in another thread, also again, and after `end`."""
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def end(self) -> None:
        """End the call."""
        for each in (self._both, self._woken, self._waker):
            each.close()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the guest stops, or the call is cancelled."""
        return self._stops if self._both.closed else self._both.fileno()

    def check_stop(self) -> None:
        """Raise if the guest has stopped, or the call is cancelled."""
        if not self._both.closed:
            self._check()
        if self._debugger is not None:
            self._debugger.check_stop()

    def runs(self) -> bool:
        """Whether the debugger lets the guest run."""
        return self._debugger is not None and self._debugger.runs()


@contextlib.contextmanager
def cancellable(shell: GuestShell, check: Callable[[], None]) -> Iterator[Cancellable]:
    """Let `Cancellable.cancel` end the waits of a shell in the block.

    Args:
        shell: The shell.
        check: Raises if the call is cancelled.
    """
    before = shell.debugger
    both = Cancellable(before, check)
    shell.debugger = both
    try:
        yield both
    finally:
        shell.debugger = before
        both.end()
