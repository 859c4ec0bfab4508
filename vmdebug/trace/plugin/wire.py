"""The memory file that a trace shares with the plugin: the request, and each vCPU's ring of records.

`plugin.c` has the same layouts as structs. All numbers are little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence

import msgspec

from vmdebug.trace.expressions.operations import Code, Op

MAGIC = 0x31544D56

HELLO = struct.Struct("<IIII")
"""The first message from the plugin: magic number, features, number of vCPUs, version of the plugin API."""

REGISTERS, MEMORY, SAMPLES = 1, 2, 4
"""Features: what the plugin can read of the guest, and whether it can count instructions."""

_HEADER = struct.Struct("<II5Q7Q8I4I3Q5Q")
_RESULTS = struct.Struct("<5Q")
_RESULTS_AT = _HEADER.size - _RESULTS.size
_PLACE = struct.Struct("<Q6I")
_RANGE = struct.Struct("<QQ")
_EXIT = struct.Struct("<B4s4sBB5x")
_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<Q")
_RING_BYTES = 128
_TAIL_AT = 64
_NAME_BYTES = 16
_PAGE = 4096

RECORD = struct.Struct("<IHHQQQQQIIq16s")
"""A record: size in bytes, probe, CPU, ns since the host's boot, ns since the guest's boot, ns
since the host's boot when the function returned or 0, return value, mask of the values that could be read,
flags, 0, pid, comm. The values follow."""

HAS_CONTEXT, HAS_CLOCK, HAS_RET, PADDING = 1, 2, 4, 8
"""Flags of a record."""

DROP, COUNT_ONLY, CACHE_CONTEXT = 1, 2, 4
"""Flags of a request."""

HIT, TASK_CHANGES, TASK_CHANGED, NAME_CHANGES, SAMPLE = range(5)
"""Kinds of places: a hit, where the current task or a name changes, or none: after `Request.period`."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """An address at which the plugin runs a program.

    Args:
        address: The address of an instruction in the guest.
        kind: See `HIT`.
        probe: The index of the probe, for a hit.
        code: Its program.
        ranges: The function's code, if its exits must be watched, too.
    """

    address: int
    kind: int = HIT
    probe: int = 0
    code: tuple[Op, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()


class ExitPattern(msgspec.Struct, frozen=True, kw_only=True):
    """An instruction that leaves a function: a return, or a jump relative to the end of the instruction.

    Args:
        code: Its first bytes, under `mask`.
        mask: The bits of `code` to compare.
        at: Offset of a jump's operand in the instruction.
        size: The operand's size in bytes; 0 for a return.
    """

    code: bytes
    mask: bytes
    at: int = 0
    size: int = 0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A trace as the plugin takes it.

    Args:
        probes: The number of probes.
        places: The addresses at which programs run.
        registers: The names of the registers that they read; the last two are the stack pointer and the
            register of a function's result, if returns are recorded.
        text: The strings that the programs compare with.
        context: A program that puts the pid and the name of the task; () for none.
        clock: A program that leaves the guest's time in ns; () for none.
        exits: The instructions that leave a function.
        thunks: Addresses of the kernel's return thunks: a jump there is a return.
        limit: The number of hits after which the plugin records no more; 0 for no limit.
        flags: See `DROP`.
        memory: The addresses of `phys_base` and of `page_offset_base`, and the latter's value in kernels that
            do not have it; 0 if not known.
        period: After how many instructions of a vCPU the program of `SAMPLE` runs; 0: never.
    """

    probes: int
    places: tuple[Place, ...]
    registers: tuple[str, ...] = ()
    text: bytes = b""
    context: tuple[Op, ...] = ()
    clock: tuple[Op, ...] = ()
    exits: tuple[ExitPattern, ...] = ()
    thunks: tuple[int, ...] = ()
    limit: int = 0
    flags: int = 0
    memory: tuple[int, int, int] = (0, 0, 0)
    period: int = 0


class Results(msgspec.Struct, frozen=True, array_like=True):
    """What the plugin counts.

    Args:
        seen: Hits, in a trace with a limit.
        dropped: Hits that found the ring full.
        unevaluated: Calls at which the condition could not be evaluated.
        unpaired: Hits without a return value, because too many calls had not returned yet.
        started: When the trace began, in ns since the host's boot; 0 if it has not yet.
    """

    seen: int
    dropped: int
    unevaluated: int
    unpaired: int
    started: int


def layout(request: Request, *, vcpus: int, ring_bytes: int) -> tuple[bytes, int, int, int]:
    """Return the start of the file, and where the vCPUs' heads, the counts and the rings are.

    Args:
        request: The trace.
        vcpus: The number of vCPUs.
        ring_bytes: The size of each ring, a power of two.
    """
    code, starts = _program(request)
    ranges = [each for place in request.places for each in place.ranges]
    places, first = b"", 0
    for place, start in zip(request.places, starts, strict=False):
        places += _PLACE.pack(place.address, place.kind, place.probe, start, first, len(place.ranges), 0)
        first += len(place.ranges)
    parts = (
        places,
        b"".join(_RANGE.pack(*each) for each in ranges),
        b"".join(
            _EXIT.pack(len(each.code), each.code, each.mask, each.at, each.size) for each in request.exits
        ),
        struct.pack(f"<{len(request.thunks)}Q", *request.thunks),
        code,
        request.text,
        b"".join(name.encode().ljust(_NAME_BYTES, b"\0") for name in request.registers),
    )
    body, offsets = b"", []
    for part in parts:
        offsets.append(_HEADER.size + len(body))
        body += part + b"\0" * (-len(part) % 8)
    cpus_at = _aligned(_HEADER.size + len(body))
    counts_at = cpus_at + _aligned(vcpus * _RING_BYTES)
    rings_at = counts_at + _aligned(vcpus * request.probes * 8)
    context, clock = starts[len(request.places) :]
    header = _HEADER.pack(
        MAGIC,
        request.flags,
        *(ring_bytes, request.limit, cpus_at, counts_at, rings_at),
        *offsets,
        *(len(request.places), len(ranges), len(request.exits), len(request.thunks)),
        *(len(code) // 16, len(request.text), len(request.registers), request.probes),
        *(context, clock, max(len(request.registers) - 2, 0), request.period),
        *request.memory,
        *(0, 0, 0, 0, 0),
    )
    return header + body, cpus_at, counts_at, rings_at


def _program(request: Request) -> tuple[bytes, list[int]]:
    """Return all operations, and where the programs of the places, of the context and of the clock begin."""
    # No program begins at 0, because 0 stands for a program that the request does not have.
    ops, starts = bytearray(Op(Code.END).packed(0)), []
    for code in (*(place.code for place in request.places), request.context, request.clock):
        base = len(ops) // 16
        starts.append(base if code else 0)
        ops += b"".join(op.packed(base) for op in code)
    return bytes(ops), starts


def _aligned(size: int) -> int:
    return (size + _PAGE - 1) // _PAGE * _PAGE


class Rings:
    """The mapped file: takes the records of each vCPU.

    Args:
        memory: The file, with the request.
        cpus_at: Where the vCPUs' heads are.
        counts_at: Where their counts are.
        rings_at: Where their rings are.
        vcpus: The number of vCPUs.
        ring_bytes: The size of each ring.
    """

    def __init__(
        self, memory: mmap.mmap, *, cpus_at: int, counts_at: int, rings_at: int, vcpus: int, ring_bytes: int
    ) -> None:
        self._memory = memory
        self._cpus_at = cpus_at
        self._counts_at = counts_at
        self._rings_at = rings_at
        self._vcpus = vcpus
        self._size = ring_bytes

    def close(self) -> None:
        """Unmap the file."""
        self._memory.close()

    @property
    def results(self) -> Results:
        """What the plugin has counted."""
        return Results(*_RESULTS.unpack_from(self._memory, _RESULTS_AT))

    def counts(self, probes: int) -> list[int]:
        """Return the number of hits of each probe, in a trace that only counts."""
        row = struct.Struct(f"<{probes}Q")
        rows = [row.unpack_from(self._memory, self._counts_at + cpu * row.size) for cpu in range(self._vcpus)]
        return [sum(column) for column in zip(*rows, strict=True)]

    def take(self) -> tuple[list[bytes], bool]:
        """Return the bytes of new records, and whether a vCPU is waiting for free space in its ring."""
        found: list[bytes] = []
        waits = False
        for cpu in range(self._vcpus):
            at = self._cpus_at + cpu * _RING_BYTES
            head, _ = _HEAD.unpack_from(self._memory, at)
            (tail,) = _TAIL.unpack_from(self._memory, at + _TAIL_AT)
            if head != tail:
                found += self._bytes(cpu, tail, head)
                _TAIL.pack_into(self._memory, at + _TAIL_AT, head)
            # Read this after storing the new tail: a vCPU sets it, and then reads the tail again.
            _, waiting = _HEAD.unpack_from(self._memory, at)
            if waiting:
                struct.pack_into("<I", self._memory, at + 8, 0)
                waits = True
        return found, waits

    def _bytes(self, cpu: int, tail: int, head: int) -> Iterator[bytes]:
        start = self._rings_at + cpu * self._size
        while tail < head:
            offset = tail % self._size
            count = min(head - tail, self._size - offset)
            yield self._memory[start + offset : start + offset + count]
            tail += count


def records(chunks: Sequence[bytes]) -> Iterator[tuple[tuple[int, ...], memoryview]]:
    """Yield the fields of each record, and the bytes of its values.

    Args:
        chunks: What `Rings.take` has returned; no record crosses the end of a chunk.
    """
    for chunk in chunks:
        view, at = memoryview(chunk), 0
        while at + 4 <= len(chunk):
            (size,) = struct.unpack_from("<I", chunk, at)
            # A gap at the end of a ring may be too small for a whole record.
            if len(chunk) - at >= RECORD.size:
                fields = RECORD.unpack_from(chunk, at)
                if not fields[8] & PADDING:
                    yield fields, view[at + RECORD.size : at + size]
            at += size or len(chunk)
