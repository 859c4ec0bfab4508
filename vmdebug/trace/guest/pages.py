"""Decodes pages of the kernel's trace ring buffer.

The layout: `struct buffer_data_page` of kernel/trace/ring_buffer.c, `struct ring_buffer_event` of
include/linux/ring_buffer.h, and Documentation/trace/ring-buffer-design.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

HEADER = struct.Struct("<QQ")
"""The time of the page, in nanoseconds of the trace's clock, and how many bytes of data follow."""

_COMMIT = 0xFFFFF
_SHIFT = 27
_TIME_TOP = 0xF8 << 56
"""The bits that an absolute time has not; see `rb_fix_abs_ts`."""

_LONGEST_SMALL, _PADDING, _TIME_EXTEND, _TIME_STAMP = 28, 29, 30, 31
"""`enum ring_buffer_type`."""

_WORD = struct.Struct("<I")
_WORD_AND_ID = struct.Struct("<IH")

Decode = Callable[[bytes, int, int], None]
"""Called with the page, where an event begins in it, and the event's time."""


def decode(page: bytes, decoders: Mapping[int, Decode]) -> None:
    """Call the decoder of each event of a page; skip the events that have none.

    Args:
        page: The page, up to the end of its data.
        decoders: What to call, by the number of the event.
    """
    time, commit = HEADER.unpack_from(page)
    at = HEADER.size
    end = at + (commit & _COMMIT)
    first, word = _WORD_AND_ID.unpack_from, _WORD.unpack_from
    while at < end - 4:
        head, number = first(page, at)
        kind = head & 31
        if 0 < kind <= _LONGEST_SMALL:
            time += head >> 5
            if number in decoders:
                decoders[number](page, at + 4, time)
            at += 4 + 4 * kind
            continue
        (more,) = word(page, at + 4)
        if kind == 0:
            time += head >> 5
            (number,) = struct.unpack_from("<H", page, at + 8)
            if number in decoders:
                decoders[number](page, at + 8, time)
            at += 4 + (more + 3 & ~3)
        elif kind == _PADDING:
            if not head >> 5:
                return  # the rest of the page
            time += head >> 5
            at += 4 + more
        elif kind == _TIME_EXTEND:
            time += (more << _SHIFT) + (head >> 5)
            at += 8
        else:
            time = time & _TIME_TOP | (more << _SHIFT) + (head >> 5)
            at += 8
