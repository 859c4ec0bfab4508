"""Ending what the main thread does, whatever it waits in, from another thread.

A signal is the one thing that wakes a thread from any system call: Python runs its handler
in the main thread and lets what it raises out of `time.sleep`, a lock, a poll (PEP 475). The
signal is SIGURG, which by default does nothing: one that comes late does no harm.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

NUMBER = signal.SIGURG


class Interrupter:
    """Raises in the main thread while armed; a context manager that has the signal meanwhile.

    It raises once for each `arm`; what comes while it is not armed, it forgets.
    pytest's main thread is where tests run; used from another one, nothing is ever raised.
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
            # What is pending is handled, by us, before the handler changes: see signal.signal() in CPython.
            signal.signal(NUMBER, self._before or signal.SIG_DFL)
            self._installed = False

    @property
    def armed(self) -> bool:
        """Whether an interrupt would be raised now."""
        return self._armed

    def arm(self) -> None:
        """Raise from here on."""
        self._error = None
        self._armed = self._installed

    def disarm(self) -> None:
        """Raise no more.

        The handler runs in this thread too: what it raises, it raises before this takes effect.
        """
        self._armed = False

    def interrupt(self, error: BaseException) -> None:
        """Have the main thread raise an error, if it is armed when it comes to it; from any thread."""
        self._error = error
        if self._installed and self._main.ident is not None:
            signal.pthread_kill(self._main.ident, NUMBER)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        __tracebackhide__ = True
        error = self._error
        if self._armed and error is not None:
            self._armed, self._error = False, None
            raise error
