"""Reads the kernel's ring buffer of messages from the memory of a guest, which may run meanwhile.

The layout is that of kernel/printk/printk_ringbuffer.h since Linux 5.10 (896fbe20b4e2), on 64-bit
little-endian machines. The differences between kernels are detected from the data, without debug information:
the fields after `tail_id`, and the size of `struct printk_info`.

The kernel may overwrite a record while it is read. So the ring's tail is read again afterwards, and records
before it are dropped.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vmdebug.errors import VmError

Read = Callable[[int, int], bytes]
"""A function that reads guest memory, given a virtual address and a number of bytes."""

_READABLE = (1, 2)
"""Values of `enum desc_state` for readable records: committed, finalized."""

_REUSABLE = 3
"""The state of a record that was dropped; the very first one has it, too."""

_STATE_SHIFT = 62
_ID_MASK = (1 << _STATE_SHIFT) - 1
"""DESC_FLAGS_SHIFT: the two top bits of a descriptor's state_var are its state, the other bits its id."""

_HEAD_SIZE = 96
"""Number of bytes of `struct printk_ringbuffer` to read."""

_DESC = struct.Struct("<QQQ")
"""struct prb_desc: state_var, text_blk_lpos.begin, text_blk_lpos.next."""

_INFO = struct.Struct("<QQHBBI")
"""struct printk_info up to `caller_id`: seq, ts_nsec, text_len, facility, flags and level, caller_id."""

_INFO_SIZES = (88, *range(32, 200, 8))
"""Possible sizes of `struct printk_info`, the usual one first: it ends with `dev_info`;
CONFIG_PRINTK_EXECUTION_CTX adds the task's name and the CPU."""

_SAMPLE = 8
"""Number of records from which the size is detected; a kernel that has just started has fewer."""

_FEW = 4
"""1/4 of the ring is not overwritten in the milliseconds that reading takes."""

_AHEAD = 64
"""Number of new records of a clone that the places of a `Past` cover."""

_DIVERGED = 8
"""Number of latest records that a clone may lack, because its template was saved before them."""

_LINE = 96
"""Bytes of text to allow for each new record."""

_RECENT = 64
"""Number of records in a `Past`."""

_LONG = 8
_BITS = range(4, 32)
_CPU = 1 << 31
_KERNEL = 1 << 63

NANOSECONDS = 1_000_000_000


class NotFoundError(VmError):
    """There is no ring buffer at the address: the kernel is another one, or has not started yet."""


class Record(NamedTuple):
    """One message.

    Args:
        time: Nanoseconds since boot.
        caller: Its caller, as printk writes it: "T77" for a task, "C1" for a CPU in an interrupt.
        text: Its text, which may have several lines.
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
    """The position of an earlier reader of the same kernel; a clone has the records of its template.

    Args:
        ids: The ids of the last records that it has read, without gaps.
        times: The time of each record in nanoseconds, which identifies it.
        info_size: The size of `struct printk_info`.
        address: The address of the ring.
        places: Addresses and sizes of the memory that a clone's reader needs first, in that order.
    """

    ids: range
    times: tuple[int, ...]
    info_size: int
    address: int
    places: tuple[tuple[int, int], ...]


class Reader:
    """Reads a guest's ring buffer. Each call of `new` returns the records since the previous call.

    Args:
        prb: The address of the kernel's variable `prb`.
        past: The position to start from, if the guest has these records; otherwise start with the oldest
            record.
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
        """The last records read."""

    def probe(self, read: Read) -> None:
        """Check that there is a ring buffer.

        Raises:
            NotFoundError: there is none.
            VmError: the memory cannot be read.
        """
        self._ring(read)

    def new(self, read: Read, *, last: bool = False) -> list[Record]:
        """Return the records since the last call; the first call returns all of them.

        Args:
            read: Reads guest memory.
            last: Whether the guest is stopped. Then skip a record that is only partly written; otherwise the
                next call starts with it.

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
        # A smaller number of records cannot be overwritten while they are read.
        tail = self._ring(read).tail if count > ring.capacity // _FEW else first
        return [record for number, record in found if not 0 < (tail - number) & _ID_MASK <= ring.capacity]

    def _ring(self, read: Read) -> _Ring:
        self._address = self._address or _u64(read(self._prb, _LONG))
        ring = _ring(read(self._address, _HEAD_SIZE)) if self._address & _KERNEL else None
        if ring is None:
            raise NotFoundError(f"there is no ring buffer of kernel messages at {self._prb:#x}")
        return ring

    def _resume(self, read: Read, ring: _Ring, past: Past) -> None:
        """Start after the last record that the guest and `past` have in common."""
        span = (ring.head - ring.tail) & _ID_MASK
        if any((number - ring.tail) & _ID_MASK > span for number in (past.ids[0], past.ids[-1])):
            return
        infos = _elements(read, ring.infos, past.info_size, past.ids, ring.capacity)
        for each in reversed(range(len(past.ids))):
            if _INFO.unpack_from(infos, each * past.info_size)[1] == past.times[each]:
                self.since, self._next = past.times[each], (past.ids[each] + 1) & _ID_MASK
                return

    def _first(self, ring: _Ring) -> int:
        """Return the id to start with: the next one, or the oldest if that was dropped."""
        span = (ring.head - ring.tail) & _ID_MASK
        if self._next is None or ((self._next - ring.tail) & _ID_MASK) > span + 1:
            return ring.tail
        return self._next

    def _records(
        self, read: Read, ring: _Ring, ids: range, *, last: bool
    ) -> tuple[list[tuple[int, Record]], int]:
        """Return the readable records with their ids, and the id to continue with."""
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
        """Return the last records as a `Past`; None if they have a gap.

        Args:
            records: The records.
            ring: The ring.
            text: The position of the text of one of the last records; a clone's own text may start there.
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
    """Return the size of `struct printk_info`: the stride that gives consecutive sequence numbers."""
    data = read(ring.infos, max(_INFO_SIZES) * _SAMPLE)
    size: int
    for size in _INFO_SIZES:
        numbers = [_u64(data[each * size :][:_LONG]) for each in range(_SAMPLE)]
        steps: list[int] = [later - former for former, later in itertools.pairwise(numbers)]
        # One step may be between the newest and the oldest record.
        if steps.count(1) >= len(steps) - 1:
            return size
    raise NotFoundError("the records of the kernel's ring buffer have an unknown layout")


class _Text:
    """The text of consecutive records, read at once, or in two parts if it wraps around."""

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
        last = (end - 1) % (1 << 64)  # positions are unsigned and start just below the overflow
        if begin // self._size != last // self._size:
            begin = 0  # a block that does not fit at the end of the ring is at its start
        start = begin % self._size + _LONG  # after the descriptor's id
        stop = min(start + length, last % self._size + 1)
        for at, data in self._parts:
            if at <= start and stop <= at + len(data):
                return data[start - at : stop - at]
        return b""


def _ring(data: bytes) -> _Ring | None:
    """Return the ring that a `struct printk_ringbuffer` describes; None if the bytes are not one."""
    bits, descs, infos, head, tail = struct.unpack_from("<I4xQQQQ", data)
    # Depending on the kernel, last_finalized_id and last_finalized_seq follow.
    for at in (40, 48, 56):
        size, text = struct.unpack_from("<I4xQ", data, at)
        if size in _BITS and bits in _BITS and all(each & _KERNEL for each in (descs, infos, text)):
            return _Ring(1 << bits, descs, infos, head & _ID_MASK, tail & _ID_MASK, 1 << size, text)
    return None


def _elements(read: Read, base: int, size: int, ids: range, capacity: int) -> bytes:
    """Return a ring's elements for consecutive ids."""
    at = ids.start % capacity
    up_to_the_end = min(len(ids), capacity - at)
    data = read(base + at * size, up_to_the_end * size)
    rest = len(ids) - up_to_the_end
    return data + (read(base, rest * size) if rest else b"")


def _u64(data: bytes) -> int:
    return int.from_bytes(data, "little")
