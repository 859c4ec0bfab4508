"""Physical frames: those of functions that were called, not inlined."""

from __future__ import annotations

import gdb


def called(frame: gdb.Frame) -> gdb.Frame:
    """Return the frame of the function that was called: `frame`, or the one that it is inlined into.

    Which of several inlined frames GDB selects at a stop depends on its release.
    """
    while frame.type() == gdb.INLINE_FRAME:
        older = frame.older()
        if older is None:
            break
        frame = older
    return frame
