"""Profiles for pprof: a gzipped message; see proto/profile.proto of github.com/google/pprof.

The message has few fields and two kinds of them, so that this module writes it itself; see
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable

from vmdebug.trace.profile.profile import Profile


class _Strings:
    """The table of strings; the first one is ""."""

    def __init__(self) -> None:
        self._indexes = {"": 0}

    def __call__(self, text: str) -> int:
        return self._indexes.setdefault(text, len(self._indexes))

    def all(self) -> Iterable[str]:
        """Return the strings, in the order of their indexes."""
        return self._indexes


def render(profile: Profile) -> bytes:
    """Return a profile with two values a stack, the number of samples and their weight; tasks are labels."""
    strings = _Strings()
    cpu = "cpu" if profile.unit == "ns" else profile.unit
    unit = "nanoseconds" if profile.unit == "ns" else "count"
    out = bytearray()
    for kind, its_unit in (("samples", "count"), (cpu, unit)):
        out += _message(1, _number(1, strings(kind)), _number(2, strings(its_unit)))
    out += _samples(profile, strings)
    wheres = dict.fromkeys(each.where for each in profile.frames)
    mappings = {where: number for number, where in enumerate(wheres, 1)}
    for where, number in mappings.items():
        out += _message(3, _number(1, number), _number(5, strings(where)), _number(7, 1))
    for number, frame in enumerate(profile.frames, 1):
        line = _message(4, _number(1, number))
        out += _message(4, _number(1, number), _number(2, mappings[frame.where]), line)
        # Without a system_name: where it is the same as the name, pprof strips <…> from a name of Rust.
        out += _message(5, _number(1, number), _number(2, strings(frame.name)))
    out += _number(10, round(profile.seconds * 1e9))
    out += _message(11, _number(1, strings(cpu)), _number(2, strings(unit)))
    out += _number(12, profile.period)
    out += b"".join(_bytes(6, each.encode()) for each in strings.all())
    return gzip.compress(bytes(out), mtime=0)


def _samples(profile: Profile, strings: _Strings) -> bytes:
    counts: Counter[tuple[int, int]] = Counter()
    weights: Counter[tuple[int, int]] = Counter()
    for each in profile.samples:
        counts[each.task, each.stack] += 1
        weights[each.task, each.stack] += each.weight
    out = bytearray()
    for (task, stack), count in counts.items():
        locations = b"".join(_varint(each + 1) for each in reversed(profile.stacks[stack]))
        values = _varint(count) + _varint(weights[task, stack])
        known = profile.tasks[task]
        labels = _message(3, _number(1, strings("task")), _number(2, strings(known.comm)))
        labels += _message(3, _number(1, strings("tid")), _number(3, known.tid))
        out += _message(2, _bytes(1, locations), _bytes(2, values), labels)
    return bytes(out)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value) if value else b""


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _message(field: int, *parts: bytes) -> bytes:
    return _bytes(field, b"".join(parts))
