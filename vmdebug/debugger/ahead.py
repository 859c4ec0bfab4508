"""A GDB that loads a kernel's symbols while its guest comes up.

Loading takes two or three times as long as a clone takes to its shell, and needs nothing of the guest.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from vmdebug import arch
from vmdebug.deadline import Deadline
from vmdebug.debugger.gdb import Gdb
from vmdebug.guest import Kernel


class Ahead:
    """A GDB on its way; a context manager that ends it if nobody has taken it. Made by `start`."""

    def __init__(self, coming: Future[Gdb]) -> None:
        self._coming: Future[Gdb] | None = coming

    @classmethod
    def start(cls, kernel: Kernel, *, deadline: Deadline) -> Self:
        """Start one.

        Args:
            kernel: Whose symbols it loads.
            deadline: Until when it has to have done so.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="vmdebug-gdb")
        try:
            row = arch.by_name(kernel.arch)
            return cls(pool.submit(Gdb.start, kernel.vmlinux, kernel.gdb_scripts, deadline=deadline, row=row))
        finally:
            pool.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        coming, self._coming = self._coming, None
        if coming is not None and coming.exception() is None:
            coming.result().close()

    def take(self) -> Gdb | None:
        """Return it, once it has loaded the symbols; None where it has been taken before.

        Raises:
            VmdebugError: as `Gdb.start`.
        """
        coming, self._coming = self._coming, None
        return None if coming is None else coming.result()
