"""Raises an error in the main thread from another thread, even while the main thread waits.

Only a signal interrupts every system call. Python runs the handler in the main thread, and an exception from
it ends `time.sleep`, the wait for a lock, or a poll (PEP 475). The signal is SIGURG, which the kernel ignores
by default, so one that arrives late does no harm.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

NUMBER = signal.SIGURG


class MainThreadInterrupt:
    """Raises in the main thread while armed; a context manager that owns the signal for its block.

    It raises once for each `arm`, and ignores an interrupt while it is not armed. If it is entered in another
    thread than the main one, it never raises; pytest runs tests in the main thread.
    """

    def __init__(self) -> None:
        self._armed = False
        self._error: BaseException | None = None
        self._main = threading.main_thread()
        self._before = signal.getsignal(NUMBER)
        self._installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is self._main:
            self._before = signal.signal(NUMBER, self._handle)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disarm()
        if self._installed:
            # CPython runs our handler for a pending signal before it changes the handler.
            signal.signal(NUMBER, self._before or signal.SIG_DFL)
            self._installed = False

    @property
    def armed(self) -> bool:
        """Whether an interrupt raises now."""
        return self._armed

    def arm(self) -> None:
        """Raise from now on."""
        self._error = None
        self._armed = self._installed

    def disarm(self) -> None:
        """Stop raising.

        The handler runs in the same thread, so it cannot raise after this method has returned.
        """
        self._armed = False

    def interrupt(self, error: BaseException) -> None:
        """Raise an error in the main thread, from any thread, if it is armed when the signal arrives."""
        self._error = error
        if self._installed and self._main.ident is not None:
            signal.pthread_kill(self._main.ident, NUMBER)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        __tracebackhide__ = True
        error = self._error
        if self._armed and error is not None:
            self._armed, self._error = False, None
            raise error
