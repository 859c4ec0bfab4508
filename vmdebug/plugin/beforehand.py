"""One thing that is made by a thread before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Wanted = TypeVar("Wanted")
Made = TypeVar("Made")


class Beforehand(Generic[Wanted, Made]):
    """Makes one thing at a time; `close` ends what nobody has taken.

    Args:
        make: Makes what is wanted; runs in a thread.
        end: Ends what was made and not taken; runs there too.
    """

    def __init__(self, make: Callable[[Wanted], Made], *, end: Callable[[Made], None]) -> None:
        self._make = make
        self._end = end
        self._pool: ThreadPoolExecutor | None = None
        self._wanted: Wanted | None = None
        self._coming: Future[Made] | None = None

    def begin(self, wanted: Wanted) -> None:
        """Begin to make something; what was begun before and not taken is ended."""
        self.drop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="vmdebug-beforehand")
        self._wanted, self._coming = wanted, self._pool.submit(self._make, wanted)

    def take(self, wanted: Wanted) -> Made | None:
        """Return what was begun, once it is made; None where something else was begun, or nothing.

        Raises:
            Exception: what `make` raised.
        """
        if self._coming is None or self._wanted != wanted:
            return None
        try:
            made = self._coming.result()
        except BaseException:
            self.drop()  # an interrupted wait leaves something that comes yet
            raise
        self._coming = None
        return made

    def drop(self) -> None:
        """Have what was begun and not taken ended, as soon as it is made; waits for nothing."""
        coming, self._coming = self._coming, None
        if coming is not None and self._pool is not None:
            self._pool.submit(self._dropped, coming)

    def close(self) -> None:
        """End what was begun and not taken, and wait for that."""
        self.drop()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _dropped(self, coming: Future[Made]) -> None:
        # What fails here, nobody hears of: no test has asked for it.
        if coming.exception() is None:
            self._end(coming.result())
