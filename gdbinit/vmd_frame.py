"""Frames of a stopped CPU, as they lie on its stack."""

from __future__ import annotations

import gdb


def called(frame: gdb.Frame) -> gdb.Frame:
    """Return the frame of the function that was called: `frame`, or what it is inlined into.

    Which of those that are inlined into one another is selected at a stop, depends on GDB's release.
    """
    while frame.type() == gdb.INLINE_FRAME:
        older = frame.older()
        if older is None:
            break
        frame = older
    return frame
