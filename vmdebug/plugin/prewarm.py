"""A thread that makes an object before it is needed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Wanted = TypeVar("Wanted")
Made = TypeVar("Made")


class Prewarmer(Generic[Wanted, Made]):
    """Makes one object at a time in a thread; `close` ends an object that was not taken.

    Args:
        make: Makes an object; runs in the thread.
        end: Ends an object that was not taken; runs in the thread.
    """

    def __init__(self, make: Callable[[Wanted], Made], *, end: Callable[[Made], None]) -> None:
        self._make = make
        self._end = end
        self._pool: ThreadPoolExecutor | None = None
        self._wanted: Wanted | None = None
        self._coming: Future[Made] | None = None

    def begin(self, wanted: Wanted) -> None:
        """Start to make an object; end an earlier one that was not taken."""
        self.drop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="vmdebug-prewarm")
        self._wanted, self._coming = wanted, self._pool.submit(self._make, wanted)

    def take(self, wanted: Wanted) -> Made | None:
        """Wait for the object and return it; None if a different one was started, or none.

        Raises:
            Exception: `make` raised it.
        """
        if self._coming is None or self._wanted != wanted:
            return None
        try:
            ready = self._coming.result()
        except BaseException:
            self.drop()  # the thread may still be making it, if the wait was interrupted
            raise
        self._coming = None
        return ready

    def drop(self) -> None:
        """Have the thread end the object once it is made; do not wait for that."""
        coming, self._coming = self._coming, None
        if coming is not None and self._pool is not None:
            self._pool.submit(self._dropped, coming)

    def close(self) -> None:
        """End the object if it was not taken, and wait until it has ended."""
        self.drop()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _dropped(self, coming: Future[Made]) -> None:
        # If it could not be made, ignore the error: no test has needed the object.
        if coming.exception() is None:
            self._end(coming.result())
