"""Reads the records of perf_event_open(2), as the sampler has asked for them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping

from vmdebug.trace.profile.mappings import Mappings
from vmdebug.trace.profile.raw import Mapped, RawSample

_HEAD = struct.Struct("<IHH")
_SAMPLE = struct.Struct("<QIIQIIQQ")
"""IP, pid and tid, time, CPU and 0, period, number of addresses; see PERF_RECORD_SAMPLE."""

_TRAILER = struct.Struct("<IIQII")
"""pid and tid, time, CPU and 0: behind every other record, for sample_id_all."""

_LOST, _COMM, _EXIT, _THROTTLE, _UNTHROTTLE, _FORK, _SAMPLED, _MMAP2 = 2, 3, 4, 5, 6, 7, 9, 10
_COMM_EXEC = 1 << 13
_EXECUTABLE = 4
_CONTEXTS = (1 << 64) - 4096
"""Call chains have marks from here on."""

_IN_KERNEL, _IN_USER = (1 << 64) - 128, (1 << 64) - 512


class Records:
    """What the records of all CPUs tell.

    Args:
        mappings: Gets the mappings and the processes.
        names: The names of threads, by pid and tid; gets those of new ones.
    """

    def __init__(self, mappings: Mappings, names: Mapping[tuple[int, int], str]) -> None:
        self.samples: list[RawSample] = []
        self.lost = 0
        self.throttled = 0
        self._mappings = mappings
        self._names = dict(names)
        self._kinds: dict[int, Callable[[bytes, int, int], None]] = {
            _LOST: self._lose,
            _COMM: self._name,
            _FORK: self._fork,
            _MMAP2: self._map,
            _THROTTLE: self._throttle,
        }

    def add(self, rings: Mapping[int, bytes]) -> None:
        """Take the bytes of each CPU's ring buffer, in the order in which they were written.

        Records of different CPUs are taken in the order of their times, because a process is named and
        mapped on one CPU and sampled on another.
        """
        timed = [each for data in rings.values() for each in _timed(data)]
        timed.sort(key=lambda each: each[0])
        for time, kind, misc, body in timed:
            if kind == _SAMPLED:
                self._sample(body)
            elif kind in self._kinds:
                self._kinds[kind](body, misc, time)

    def _sample(self, body: bytes) -> None:
        _, pid, tid, time, cpu, _, period, count = _SAMPLE.unpack_from(body)
        chain = struct.unpack_from(f"<{count}Q", body, _SAMPLE.size)
        kernel: list[int] = []
        user: list[int] = []
        into = kernel
        for address in chain:
            if address >= _CONTEXTS:
                into = user if address == _IN_USER else kernel
            else:
                into.append(address)
        comm = self._names.get((pid, tid), "") if tid else f"swapper/{cpu}"
        self.samples.append(RawSample(time, cpu, pid, tid, comm, tuple(kernel), tuple(user), period))

    def _lose(self, body: bytes, _misc: int, _time: int) -> None:
        self.lost += struct.unpack_from("<QQ", body)[1]

    def _throttle(self, _body: bytes, _misc: int, _time: int) -> None:
        self.throttled += 1

    def _name(self, body: bytes, misc: int, time: int) -> None:
        pid, tid = struct.unpack_from("<II", body)
        self._names[pid, tid] = _text(body, 8)
        if misc & _COMM_EXEC:
            self._mappings.execute(pid, time)

    def _fork(self, body: bytes, _misc: int, time: int) -> None:
        pid, parent, tid, parent_tid = struct.unpack_from("<IIII", body)
        self._names[pid, tid] = self._names.get((parent, parent_tid), "")
        self._mappings.fork(pid, parent, time)

    def _map(self, body: bytes, _misc: int, time: int) -> None:
        pid, _tid, start, size, offset = struct.unpack_from("<IIQQQ", body)
        protection = struct.unpack_from("<I", body, 56)[0]
        if protection & _EXECUTABLE:
            self._mappings.map(pid, time, Mapped(start, start + size, offset, _text(body, 64)))


def _timed(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the time of each record in a ring buffer, its kind, its flags and its body."""
    at = 0
    while at + _HEAD.size <= len(data):
        kind, misc, size = _HEAD.unpack_from(data, at)
        if size < _HEAD.size or at + size > len(data):
            return
        body = data[at + _HEAD.size : at + size]
        time = (
            _SAMPLE.unpack_from(body)[3]
            if kind == _SAMPLED
            else _TRAILER.unpack_from(body, len(body) - 24)[2]
        )
        yield time, kind, misc, body
        at += size


def _text(body: bytes, at: int) -> str:
    return body[at:].partition(b"\0")[0].decode(errors="replace")
