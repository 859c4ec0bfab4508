"""Frames between vmdebug and its agent in the guest; `agent.c` has the protocol."""

from __future__ import annotations

from dataclasses import dataclass

FLAG = b"~"
ESCAPE = b"}"

_HEAD = 5
"""Bytes of a frame before its payload: the type and the sequence number."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Args:
        kind: Its type, one letter.
        sequence: Its number in the session.
        payload: Its data.
    """

    kind: bytes
    sequence: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes to send, with the flag at the end."""
        plain = self.kind + self.sequence.to_bytes(_HEAD - 1, "little") + self.payload
        # Replace the escape first: the replacement of the flag contains one.
        return plain.replace(ESCAPE, b"}]").replace(FLAG, b"}^") + FLAG


class Decoder:
    """Splits a stream into frames. Drops pieces that are too short for a frame."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes."""
        first, *rest = data.split(FLAG)
        self._pieces.append(first)
        if not rest:
            return []
        *middle, last = rest
        whole = [b"".join(self._pieces), *middle]
        self._pieces = [last]
        return [_decode(each) for each in whole if len(each) >= _HEAD]


def _decode(stuffed: bytes) -> Frame:
    plain = stuffed.replace(b"}^", FLAG).replace(b"}]", ESCAPE) if ESCAPE in stuffed else stuffed
    return Frame(plain[:1], int.from_bytes(plain[1:_HEAD], "little"), plain[_HEAD:])
