"""The agent's mailbox: memory at a fixed address, which the host reads and writes while the guest is stopped.

`struct mailbox` of agent.c has its layout. Each piece of input is for one stop. So pieces that are known from
an earlier run can be written at the begin of the next one, and nothing during it: for a guest that is
recorded.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import VmError
from vmdebug.hunting.stub import Stub

ADDRESS = 0x200000000000
"""`MAILBOX_ADDRESS` of agent.c."""

_HEAD = struct.Struct("<QII")
_OUTPUT = ADDRESS + _HEAD.size
_OUTPUT_BYTES = 1 << 15
_INPUT = _OUTPUT + _OUTPUT_BYTES
_WORD = 8

_PIECE = struct.Struct("<II")

LONGEST = (1 << 14) - _PIECE.size
"""Bytes of the longest piece."""


class Piece(msgspec.Struct, frozen=True):
    """What the host gave the agent at a stop.

    Args:
        stop: The number of the stop.
        at: Where it is in the mailbox.
        data: The input.
    """

    stop: int
    at: int
    data: bytes


class OtherRunError(VmError):
    """A run that should repeat an earlier one does not."""


class Mailbox:
    """The mailbox of a stopped guest.

    Args:
        stub: The connection to its gdbstub.
        known: What will be given, if the guest has it already; None: it is written when it is given.
    """

    def __init__(self, stub: Stub, known: Sequence[Piece] | None = None) -> None:
        self._stub = stub
        self._known = None if known is None else list(known)
        self.given: list[Piece] = []

    def watch(self, *, deadline: Deadline) -> None:
        """Let the agent stop the guest."""
        self._stub.watch(ADDRESS, _WORD, deadline=deadline)

    def give(self, data: bytes, *, deadline: Deadline) -> None:
        """Give the agent input, at most one piece at a stop.

        Raises:
            OtherRunError: it is not what was known.
        """
        stop, _, at = self._head(deadline)
        piece = Piece(stop & 0xFFFFFFFF, at, data)
        self.given.append(piece)
        if self._known is None:
            self._write(piece, deadline)
        elif self._known[len(self.given) - 1 : len(self.given)] != [piece]:
            raise OtherRunError("the guest or the script did something else than in the run before")

    def write(self, pieces: Sequence[Piece], *, deadline: Deadline) -> None:
        """Write the input of a whole run.

        Raises:
            VmError: the mailbox is too small for it.
        """
        if any(after.at < before.at for before, after in itertools.pairwise(pieces)):
            raise VmError(
                "the script sends more to the guest than a recorded guest can get",
                hint="send it before the guest is copied, in the script's prepare(session)",
            )
        for piece in pieces:
            self._write(piece, deadline)

    def output(self, *, deadline: Deadline) -> bytes:
        """Return what the agent has written."""
        _, size, _ = self._head(deadline)
        return self._stub.read(_OUTPUT, size, deadline=deadline)

    def _head(self, deadline: Deadline) -> tuple[int, int, int]:
        stop, size, at = _HEAD.unpack(self._stub.read(ADDRESS, _HEAD.size, deadline=deadline))
        return stop, size, at

    def _write(self, piece: Piece, deadline: Deadline) -> None:
        header = _PIECE.pack(piece.stop, len(piece.data))
        self._stub.write(_INPUT + piece.at, header + piece.data, deadline=deadline)
