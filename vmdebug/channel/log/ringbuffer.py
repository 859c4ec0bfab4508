"""The kernel's ring buffer of messages, read from the memory of a guest that may run meanwhile.

The layout is that of kernel/printk/printk_ringbuffer.h since Linux 5.10 (896fbe20b4e2), on 64-bit
little-endian machines. What differs between kernels is found by looking, so no debug information is needed:
the fields behind `tail_id`, and the size of `struct printk_info`.

Writers never wait for a reader, so a record may be overwritten while it is read: the ring's tail is read
again afterwards, and what it has passed is dropped.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vmdebug.errors import VmError

Read = Callable[[int, int], bytes]
"""Returns so many bytes of guest memory from a virtual address on."""

_READABLE = (1, 2)
"""Values of `enum desc_state` for records that can be read: committed, finalized."""

_REUSABLE = 3
"""The state of a record that is gone, as is the very first one."""

_STATE_SHIFT = 62
_ID_MASK = (1 << _STATE_SHIFT) - 1
"""DESC_FLAGS_SHIFT: the two top bits of a descriptor's state_var are its state, the other bits its id."""

_HEAD_SIZE = 96
"""Bytes of `struct printk_ringbuffer` that are read."""

_DESC = struct.Struct("<QQQ")
"""struct prb_desc: state_var, text_blk_lpos.begin, text_blk_lpos.next."""

_INFO = struct.Struct("<QQHBBI")
"""struct printk_info as far as `caller_id`: seq, ts_nsec, text_len, facility, flags and level, caller_id."""

_INFO_SIZES = (88, *range(32, 200, 8))
"""Sizes that `struct printk_info` may have, the usual one first: it ends with `dev_info`, and
CONFIG_PRINTK_EXECUTION_CTX adds the task's name and the CPU."""

_SAMPLE = 8
"""Records by which the size is found; a kernel that has just begun has fewer."""

_FEW = 4
"""Less than this part of the ring is not overwritten in the milliseconds that reading takes."""

_AHEAD = 64
"""For how many records of a clone's own a `Past` has places."""

_DIVERGED = 8
"""How many of the last records may not be a clone's: its template was saved before them."""

_LINE = 96
"""Bytes of the text of one of those."""

_RECENT = 64
"""How many records a `Past` has."""

_LONG = 8
_BITS = range(4, 32)
_CPU = 1 << 31
_KERNEL = 1 << 63

NANOSECONDS = 1_000_000_000


class NotFoundError(VmError):
    """There is no ring buffer at the address: the kernel is another one, or is not there yet."""


class Record(NamedTuple):
    """One message.

    Args:
        time: Nanoseconds since boot.
        caller: Who printed it, as printk writes it: "T77" for a task, "C1" for a CPU in an interrupt.
        text: Its text, which can have several lines.
    """

    time: int
    caller: str
    text: bytes

    def lines(self) -> Iterator[str]:
        """Yield its lines as a console with CONFIG_PRINTK_CALLER prints them."""
        seconds, rest = divmod(self.time, NANOSECONDS)
        prefix = f"[{seconds:5d}.{rest // 1000:06d}][{self.caller:>6}] "
        for line in self.text.decode(errors="replace").split("\n"):
            yield prefix + line


class _Ring(NamedTuple):
    """The ring at one moment: `struct prb_desc_ring` and `struct prb_data_ring`."""

    capacity: int
    descs: int
    infos: int
    head: int
    tail: int
    size: int
    data: int


class Past(NamedTuple):
    """Where another reader of the same kernel has been: a clone has the history of its template.

    Args:
        ids: The ids of the last records that it has read, without gap.
        times: The time of each in nanoseconds, by which a record is known again.
        info_size: The size of `struct printk_info`.
        address: Where the ring is.
        places: Addresses and sizes of what a clone's reader will ask for first, in that order.
    """

    ids: range
    times: tuple[int, ...]
    info_size: int
    address: int
    places: tuple[tuple[int, int], ...]


class Reader:
    """Reads a guest's ring buffer; each call of `new` returns what has come since the one before.

    Args:
        prb: The address of the kernel's variable `prb`.
        past: Where to begin, if the guest has that history; None, or another history: with the oldest record.
    """

    def __init__(self, prb: int, past: Past | None = None) -> None:
        self._prb = prb
        self._address = 0 if past is None else past.address
        self._next: int | None = None
        self._past = past
        self._info_size = 0 if past is None else past.info_size
        self.since = -1
        """The time of the last record that `past` and this guest have in common, in nanoseconds; else -1."""
        self.read: Past | None = None
        """The last records that have been read."""

    def probe(self, read: Read) -> None:
        """Prove that there is a ring buffer.

        Raises:
            NotFoundError: there is none.
            VmError: the memory cannot be read.
        """
        self._ring(read)

    def new(self, read: Read, *, last: bool = False) -> list[Record]:
        """Return the records since the last call; the first call returns all that there are.

        Args:
            read: Reads guest memory.
            last: Whether the guest does not run: a record that is being written will never be whole, and is
                passed over. Otherwise the next call begins with it.

        Raises:
            NotFoundError: there is no ring buffer.
            VmError: the memory cannot be read.
        """
        ring = self._ring(read)
        if self._past is not None:
            past, self._past = self._past, None
            self._resume(read, ring, past)
        first = self._first(ring)
        count = (ring.head - first + 1) & _ID_MASK
        if not 0 < count <= ring.capacity:
            return []
        ids = range(first, first + count)
        found, self._next = self._records(read, ring, ids, last=last)
        # Fewer records than that are not overtaken while they are read.
        tail = self._ring(read).tail if count > ring.capacity // _FEW else first
        return [record for number, record in found if not 0 < (tail - number) & _ID_MASK <= ring.capacity]

    def _ring(self, read: Read) -> _Ring:
        self._address = self._address or _u64(read(self._prb, _LONG))
        ring = _ring(read(self._address, _HEAD_SIZE)) if self._address & _KERNEL else None
        if ring is None:
            raise NotFoundError(f"there is no ring buffer of kernel messages at {self._prb:#x}")
        return ring

    def _resume(self, read: Read, ring: _Ring, past: Past) -> None:
        """Begin behind the last record that a past has, too."""
        span = (ring.head - ring.tail) & _ID_MASK
        if any((number - ring.tail) & _ID_MASK > span for number in (past.ids[0], past.ids[-1])):
            return
        infos = _elements(read, ring.infos, past.info_size, past.ids, ring.capacity)
        for each in reversed(range(len(past.ids))):
            if _INFO.unpack_from(infos, each * past.info_size)[1] == past.times[each]:
                self.since, self._next = past.times[each], (past.ids[each] + 1) & _ID_MASK
                return

    def _first(self, ring: _Ring) -> int:
        """Return the id to begin with: the next one, or the oldest where that is gone."""
        span = (ring.head - ring.tail) & _ID_MASK
        if self._next is None or ((self._next - ring.tail) & _ID_MASK) > span + 1:
            return ring.tail
        return self._next

    def _records(
        self, read: Read, ring: _Ring, ids: range, *, last: bool
    ) -> tuple[list[tuple[int, Record]], int]:
        """Return the records that can be read, each with its id, and the id to go on with."""
        descs = _DESC.iter_unpack(_elements(read, ring.descs, _DESC.size, ids, ring.capacity))
        blocks: list[tuple[int, int, int]] = []
        after = ids.stop
        for number, (state, begin, end) in zip(ids, descs, strict=True):
            current = state & _ID_MASK == number & _ID_MASK
            if current and state >> _STATE_SHIFT in _READABLE:
                blocks.append((number, begin, end))
            elif not (last or (current and state >> _STATE_SHIFT == _REUSABLE)):
                after = number
                break
        if not blocks:
            return [], after & _ID_MASK
        size = self._info_size = self._info_size or _info_size(read, ring)
        infos = _elements(read, ring.infos, size, ids, ring.capacity)
        text = _Text(read, ring, [(begin, end) for _, begin, end in blocks])
        found = []
        for number, begin, end in blocks:
            _, time, length, *_, caller = _INFO.unpack_from(infos, (number - ids.start) * size)
            who = f"C{caller & ~_CPU}" if caller & _CPU else f"T{caller}"
            found.append((number & _ID_MASK, Record(time, who, text.block(begin, end, length))))
        self.read = self._as_past(found[-_RECENT:], ring, blocks[-_DIVERGED:][0][1])
        return found, after & _ID_MASK

    def _as_past(self, records: list[tuple[int, Record]], ring: _Ring, text: int) -> Past | None:
        """Return the last records as a past; None where there is a gap in them.

        Args:
            records: The records.
            ring: The ring.
            text: The position of the text of one of the last ones, from which a clone may have its own.
        """
        first, last = records[0][0], records[-1][0]
        if last - first != len(records) - 1:
            return None
        ids = range(first, last + 1)
        at = first % ring.capacity
        window = min(len(ids) + _AHEAD, ring.capacity - at)
        size = self._info_size
        places = (
            (self._address, _HEAD_SIZE),
            (ring.infos + at * size, window * size),
            (ring.descs + at * _DESC.size, window * _DESC.size),
            (ring.data + text % ring.size, min(_AHEAD * _LINE, ring.size - text % ring.size)),
        )
        times = tuple(record.time for _, record in records)
        return Past(ids, times, size, self._address, places)


def _info_size(read: Read, ring: _Ring) -> int:
    """Return the size of `struct printk_info`: the step at which sequence numbers are consecutive."""
    data = read(ring.infos, max(_INFO_SIZES) * _SAMPLE)
    size: int
    for size in _INFO_SIZES:
        numbers = [_u64(data[each * size :][:_LONG]) for each in range(_SAMPLE)]
        steps: list[int] = [later - former for former, later in itertools.pairwise(numbers)]
        # The newest and the oldest record may be neighbours there.
        if steps.count(1) >= len(steps) - 1:
            return size
    raise NotFoundError("the records of the kernel's ring buffer have an unknown layout")


class _Text:
    """The text of a run of records, read in one go, or in two where the ring starts anew in it."""

    def __init__(self, read: Read, ring: _Ring, blocks: list[tuple[int, int]]) -> None:
        self._size = ring.size
        real = [(begin, end) for begin, end in blocks if not begin & 1]
        start = real[0][0] if real else 0
        length = min((real[-1][1] - start) % (1 << 64), ring.size) if real else 0
        at = start % ring.size
        up_to_the_end = min(length, ring.size - at)
        data = read(ring.data + at, up_to_the_end) if up_to_the_end > 0 else b""
        rest = length - up_to_the_end
        self._parts = ((at, data), (0, read(ring.data, rest) if rest > 0 else b""))

    def block(self, begin: int, end: int, length: int) -> bytes:
        """Return the text of the data block between two logical positions."""
        if begin & 1:
            return b""  # a record without data: BLK_DATALESS
        last = (end - 1) % (1 << 64)  # positions are words of the kernel's, and begin just below their end
        if begin // self._size != last // self._size:
            begin = 0  # a block that does not fit at the end is at the start
        start = begin % self._size + _LONG  # after the descriptor's id
        stop = min(start + length, last % self._size + 1)
        for at, data in self._parts:
            if at <= start and stop <= at + len(data):
                return data[start - at : stop - at]
        return b""


def _ring(data: bytes) -> _Ring | None:
    """Return the ring that a `struct printk_ringbuffer` describes; None if these bytes are none."""
    bits, descs, infos, head, tail = struct.unpack_from("<I4xQQQQ", data)
    # Kernels differ in how many words follow: last_finalized_id, last_finalized_seq.
    for at in (40, 48, 56):
        size, text = struct.unpack_from("<I4xQ", data, at)
        if size in _BITS and bits in _BITS and all(each & _KERNEL for each in (descs, infos, text)):
            return _Ring(1 << bits, descs, infos, head & _ID_MASK, tail & _ID_MASK, 1 << size, text)
    return None


def _elements(read: Read, base: int, size: int, ids: range, capacity: int) -> bytes:
    """Return a ring's elements of some consecutive ids."""
    at = ids.start % capacity
    up_to_the_end = min(len(ids), capacity - at)
    data = read(base + at * size, up_to_the_end * size)
    rest = len(ids) - up_to_the_end
    return data + (read(base, rest * size) if rest else b"")


def _u64(data: bytes) -> int:
    return int.from_bytes(data, "little")
