"""The layout of the memory that vmdebug shares with the plugin to record coverage; see `coverage.c`."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence

import msgspec

from vmdebug.arch import Branch

MAGIC = 0x31434D56
KEEP = 1
"""A flag: the plugin goes on recording when the client closes its connection."""

CAPACITY = 1 << 20
"""How many blocks there is room for. A boot executes 60,000; only the memory that is used is allocated."""

_HEADER = struct.Struct("<6I6Q")
_RESULTS = struct.Struct("<Q2I")
_RANGE = struct.Struct("<2Q")
_JUMP = struct.Struct("<B4s4sBB5x")
_BLOCK = struct.Struct("<2Q2I")
_PAGE = 4096

SIZE_AT = _HEADER.size + _RESULTS.size


class Block(msgspec.Struct, frozen=True, array_like=True):
    """A block of instructions that was executed: it ends with a jump, or at the end of a page.

    Args:
        start: The address of its first instruction, in the guest.
        target: Where the conditional jump at its end leads if it is taken; 0 if it ends with none.
        size: Its size in bytes.
        jump: The offset of its last instruction.
        taken: Whether the conditional jump at its end was taken.
        passed: Whether that jump was not taken.
    """

    start: int
    target: int
    size: int
    jump: int
    taken: bool
    passed: bool


def layout(
    ranges: Sequence[tuple[int, int]],
    jumps: Sequence[Branch],
    *,
    keep: bool = False,
    capacity: int = CAPACITY,
) -> tuple[bytes, int]:
    """Return the start of the file, and the file's size.

    Args:
        ranges: Where to record: first addresses, and those behind the last; sorted, without overlaps.
        jumps: The conditional jumps of the architecture.
        keep: Whether recording goes on when the client has gone.
        capacity: The number of blocks that there is room for.
    """
    ranges_at = SIZE_AT
    jumps_at = ranges_at + len(ranges) * _RANGE.size
    blocks_at = _aligned(jumps_at + len(jumps) * _JUMP.size)
    executed_at = _aligned(blocks_at + capacity * _BLOCK.size)
    taken_at = _aligned(executed_at + capacity)
    passed_at = _aligned(taken_at + capacity)
    start = b"".join(
        (
            _HEADER.pack(
                *(MAGIC, KEEP if keep else 0, len(ranges), len(jumps), capacity, 0),
                *(ranges_at, jumps_at, blocks_at, executed_at, taken_at, passed_at),
            ),
            _RESULTS.pack(0, 0, 0),
            *(_RANGE.pack(*each) for each in ranges),
            *(_pattern(each) for each in jumps),
        )
    )
    return start, _aligned(passed_at + capacity)


def _pattern(jump: Branch) -> bytes:
    code, mask = bytes.fromhex(jump.code), bytes.fromhex(jump.mask)
    return _JUMP.pack(len(code), code, mask, jump.at, jump.size)


def _aligned(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


class Recorded:
    """The mapped file: which blocks were executed.

    Args:
        memory: The file.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        header = _HEADER.unpack_from(memory)
        self._blocks_at, self._executed_at, self._taken_at, self._passed_at = header[8:]

    def close(self) -> None:
        """Unmap the file."""
        self._memory.close()

    @property
    def started(self) -> bool:
        """Whether the plugin records."""
        return bool(_RESULTS.unpack_from(self._memory, _HEADER.size)[0])

    @property
    def lost(self) -> int:
        """How often a block was translated for which there was no room."""
        return int(_RESULTS.unpack_from(self._memory, _HEADER.size)[2])

    @property
    def _used(self) -> int:
        return int(_RESULTS.unpack_from(self._memory, _HEADER.size)[1])

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks that were executed since the start, or since `clear`."""
        used = self._used
        executed, taken, passed = (
            self._memory[at : at + used] for at in (self._executed_at, self._taken_at, self._passed_at)
        )
        number = executed.find(1)
        while number >= 0:
            at = self._blocks_at + number * _BLOCK.size
            start, target, size, jump = _BLOCK.unpack_from(self._memory, at)
            yield Block(start, target, size, jump, bool(taken[number]), bool(passed[number]))
            number = executed.find(1, number + 1)

    def clear(self) -> None:
        """Forget what was executed until now."""
        used = self._used
        for at in (self._executed_at, self._taken_at, self._passed_at):
            self._memory[at : at + used] = bytes(used)
