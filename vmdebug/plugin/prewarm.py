"""A thread makes one thing before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Wanted = TypeVar("Wanted")
Made = TypeVar("Made")


class Prewarmer(Generic[Wanted, Made]):
    """Makes one thing at a time in a thread; `close` ends a thing that nobody took.

    Args:
        make: Makes a thing; runs in the thread.
        end: Ends a thing that nobody took; runs in the thread.
    """

    def __init__(self, make: Callable[[Wanted], Made], *, end: Callable[[Made], None]) -> None:
        self._make = make
        self._end = end
        self._pool: ThreadPoolExecutor | None = None
        self._wanted: Wanted | None = None
        self._coming: Future[Made] | None = None

    def begin(self, wanted: Wanted) -> None:
        """Start to make a thing; an earlier one that nobody took is ended."""
        self.drop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="vmdebug-prewarm")
        self._wanted, self._coming = wanted, self._pool.submit(self._make, wanted)

    def take(self, wanted: Wanted) -> Made | None:
        """Return the thing that was started, once it is made; None if another one was started, or none.

        Raises:
            Exception: `make` raised it.
        """
        if self._coming is None or self._wanted != wanted:
            return None
        try:
            made = self._coming.result()
        except BaseException:
            self.drop()  # after an interrupted wait the thing is still being made
            raise
        self._coming = None
        return made

    def drop(self) -> None:
        """End the thing that nobody took, as soon as it is made; returns at once."""
        coming, self._coming = self._coming, None
        if coming is not None and self._pool is not None:
            self._pool.submit(self._dropped, coming)

    def close(self) -> None:
        """End the thing that nobody took, and wait until it is ended."""
        self.drop()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _dropped(self, coming: Future[Made]) -> None:
        # A failure to make it stays silent: no test asked for it.
        if coming.exception() is None:
            self._end(coming.result())
