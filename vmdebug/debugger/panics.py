"""Where a kernel goes when it panics, oopses or warns: the functions that a catch is planted in.

Each is in kernel/panic.c, the same for every architecture, and comes before a word of it is
printed, or QEMU ended by it.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmdebug.debugger.stop import OOPS, PANIC, WARNING

_PLACES = (
    # panic() hands on to vpanic() where there is one, and so does what has its arguments in a va_list.
    (PANIC, ("vpanic", "panic")),
    # die(), page faults and BUG() of every architecture come here; oops_begin() is one architecture's own.
    (OOPS, ("oops_enter",)),
    (WARNING, ("__warn",)),
)


def places(*, oops: bool, warn: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return what is to be caught: the reason of the stop, and the functions of which one is there.

    Args:
        oops: Whether oopses and BUG() are, which need not end in a panic.
        warn: Whether WARN() is.
    """
    wanted = {PANIC: True, OOPS: oops, WARNING: warn}
    return ((reason, symbols) for reason, symbols in _PLACES if wanted[reason])
