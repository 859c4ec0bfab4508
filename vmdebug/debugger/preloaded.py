"""A GDB that loads a kernel's symbols before its guest exists.

Loading them takes two or three times as long as starting a clone, and does not need the guest.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

from vmdebug.deadline import Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.debugger.modules import LOAD_SECONDS
from vmdebug.guest import Kernel


class PreloadedGdb:
    """A GDB that a thread starts; a context manager that ends it if it was not taken. Made by `start`."""

    def __init__(self, starting: Future[Gdb]) -> None:
        self._starting: Future[Gdb] | None = starting

    @classmethod
    def start(cls, kernel: Kernel, *, timeout: float = LOAD_SECONDS) -> Self:
        """Start one.

        Args:
            kernel: The kernel whose symbols it loads.
            timeout: Seconds that loading may take.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="vmdebug-gdb")
        try:
            return cls(pool.submit(Gdb.of, kernel, timeout=timeout))
        finally:
            pool.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self, *, timeout: float = LOAD_SECONDS) -> Gdb | None:
        """Wait until GDB has loaded the symbols, and return it; None if it was taken before.

        Args:
            timeout: Seconds.

        Raises:
            DeadlineError: GDB has not loaded them in time; it can be taken later.
            VmdebugError: as `Gdb.start` does.
        """
        if self._starting is None:
            return None
        wait([self._starting], timeout)
        if not self._starting.done():
            raise Deadline.after(timeout).error("GDB to load the kernel's symbols")
        starting, self._starting = self._starting, None
        return starting.result()

    def close(self) -> None:
        """End the GDB if it was not taken; a second call does nothing."""
        starting, self._starting = self._starting, None
        if starting is not None and starting.exception() is None:
            starting.result().close()
