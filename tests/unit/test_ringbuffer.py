"""The kernel's ring buffer, laid out in memory as printk_ringbuffer.h has it."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmdebug.channel.log.ringbuffer import NotFoundError, Reader

PRB, RING, DESCS, INFOS, DATA = (
    0xFFFFFFFF81000000 + each for each in (0, 0x1000, 0x10000, 0x100000, 0x200000)
)
BITS, SIZE_BITS = 5, 10
COUNT, SIZE = 1 << BITS, 1 << SIZE_BITS
MASK = (1 << 62) - 1
LONG = (1 << 64) - 1


class Kernel:
    """A kernel that prints; its memory is that of printk's ring buffer."""

    def __init__(self, *, info_size: int = 88, more_words: int = 1) -> None:
        self.info_size = info_size
        self.more_words = more_words
        self.descs = bytearray(24 * COUNT)
        self.infos = bytearray(info_size * COUNT)
        self.data = bytearray(SIZE)
        self.head = self.tail = -(COUNT + 1) & MASK
        self.lpos = -SIZE & LONG
        self.seq = 0
        self._desc(self.head, 3, 1, 1)
        self.reads = 0

    def _desc(self, number: int, state: int, begin: int, end: int) -> None:
        struct.pack_into("<QQQ", self.descs, 24 * (number % COUNT), number | state << 62, begin, end)

    def print(self, text: bytes, *, time: int = 0, caller: int = 1, state: int = 2) -> None:
        size = 8 + (len(text) + 7) // 8 * 8
        begin = self.lpos
        end = (begin + size) & LONG
        start = begin % SIZE
        if begin // SIZE != ((end - 1) & LONG) // SIZE:
            end = ((begin // SIZE + 1) * SIZE + size) & LONG
            start = 0
        self.head = (self.head + 1) & MASK
        self.data[start : start + 8] = struct.pack("<Q", self.head)
        self.data[start + 8 : start + 8 + len(text)] = text
        struct.pack_into(
            "<QQHBBI",
            self.infos,
            self.info_size * (self.head % COUNT),
            self.seq,
            time,
            len(text),
            0,
            0,
            caller,
        )
        self.seq += 1
        self.lpos = end
        self._desc(self.head, state, begin, end)
        while (self.head - self.tail) & MASK >= COUNT or self._gone(self.tail):
            self.tail = (self.tail + 1) & MASK

    def _gone(self, number: int) -> bool:
        state, begin, _ = struct.unpack_from("<QQQ", self.descs, 24 * (number % COUNT))
        dataless = bool(begin & 1)
        return number != self.head and (dataless or (self.lpos - begin) & LONG > SIZE) and bool(state)

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        more = struct.pack("<Q", self.head) * self.more_words
        ring = struct.pack("<I4xQQQQ", BITS, DESCS, INFOS, self.head, self.tail) + more
        ring += struct.pack("<I4xQQQQ", SIZE_BITS, DATA, self.lpos, 0, 0)
        places = {
            PRB: struct.pack("<Q", RING),
            RING: ring,
            DESCS: self.descs,
            INFOS: self.infos,
            DATA: self.data,
        }
        for place, content in places.items():
            if place <= address < place + 0x1000 or place <= address < place + len(content):
                return bytes(content[address - place :][:size]).ljust(size, b"\0")
        raise AssertionError(hex(address))


def texts(kernel: Kernel, reader: Reader, *, last: bool = False) -> list[str]:
    return [record.text.decode() for record in reader.new(kernel.read, last=last)]


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=90), max_size=16), max_size=8),
    st.sampled_from([(88, 0), (88, 1), (88, 2), (112, 1)]),
)
def test_what_is_new_is_returned_once_and_whole(said: list[list[bytes]], layout: tuple[int, int]) -> None:
    kernel = Kernel(info_size=layout[0], more_words=layout[1])
    for _ in range(9):
        kernel.print(b"boot")
    reader = Reader(PRB)
    assert [each.text for each in reader.new(kernel.read)][-1:] == [b"boot"]
    for lines in said:
        for line in lines:
            kernel.print(line)
        found = [each.text for each in reader.new(kernel.read)]
        # What did not fit into the ring is gone.
        assert found == lines[len(lines) - len(found) :]
        assert len(found) == len(lines) or sum(len(line) + 16 for line in lines) > SIZE // 2


def test_a_record_says_who_printed_it_and_when() -> None:
    kernel = Kernel()
    for _ in range(8):
        kernel.print(b"boot")
    reader = Reader(PRB)
    reader.new(kernel.read)
    kernel.print(b"one\ntwo", time=12_345_678_901, caller=77)
    kernel.print(b"three", time=12_345_679_000, caller=1 << 31 | 3)
    assert [line for each in reader.new(kernel.read) for line in each.lines()] == [
        "[   12.345678][   T77] one",
        "[   12.345678][   T77] two",
        "[   12.345679][    C3] three",
    ]


def test_a_record_that_is_being_written_is_waited_for_while_the_guest_lives() -> None:
    kernel = Kernel()
    for _ in range(8):
        kernel.print(b"boot")
    reader = Reader(PRB)
    reader.new(kernel.read)
    kernel.print(b"half", state=0)
    kernel.print(b"whole")
    assert texts(kernel, reader) == []
    assert texts(kernel, reader, last=True) == ["whole"]


def test_a_clone_begins_behind_the_history_of_its_template() -> None:
    def booted() -> Kernel:
        kernel = Kernel()
        for each in range(12):
            kernel.print(b"boot", time=each)
        return kernel

    first = Reader(PRB)
    kernel = booted()
    kernel.print(b"the first's own", time=100)
    first.new(kernel.read)
    assert first.read is not None
    wanted: list[tuple[int, int]] = []

    clone = booted()
    clone.print(b"the clone's own", time=101)
    reader = Reader(PRB, first.read)

    def read(address: int, size: int) -> bytes:
        wanted.append((address, size))
        return clone.read(address, size)

    assert [each.text for each in reader.new(read)] == [b"the clone's own"]
    for address, size in wanted:
        places = [(place, length) for place, length in first.read.places if place <= address]
        assert any(address + size <= place + length for place, length in places)
    assert reader.since == 11

    other = Kernel()
    for each in range(12):
        other.print(b"another boot", time=1000 + each)
    reader = Reader(PRB, first.read)
    assert len(texts(other, reader)) == 12
    assert reader.since == -1


def test_little_is_read_of_a_guest_that_has_said_nothing() -> None:
    kernel = Kernel()
    for _ in range(8):
        kernel.print(b"boot")
    reader = Reader(PRB)
    reader.new(kernel.read)
    kernel.reads = 0
    assert texts(kernel, reader) == []
    assert kernel.reads == 1


@settings(max_examples=200)
@given(st.binary(min_size=96, max_size=96))
def test_any_other_memory_is_no_ring_buffer_or_read_within_bounds(data: bytes) -> None:
    def read(address: int, size: int) -> bytes:
        assert size < 1 << 34
        return (data * (size // 96 + 1))[:size] if size < 1 << 20 else bytes(0)

    with contextlib.suppress(NotFoundError):
        Reader(PRB).probe(read)


def test_memory_of_zeros_is_no_ring_buffer() -> None:
    with pytest.raises(NotFoundError, match="no ring buffer"):
        Reader(PRB).probe(lambda _, size: bytes(size))
