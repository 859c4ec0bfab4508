"""A session with the agent in the guest, on one port."""

from __future__ import annotations

import os
import select

from vmdebug.channel.agent.frames import FLAG, Decoder, Frame
from vmdebug.channel.port import Port
from vmdebug.errors import VmError

VERSION = 1
"""Version of the protocol; see `agent.c`."""

_NONCE = 16


class LostError(VmError):
    """The agent does not know this session: a snapshot was loaded, or the agent was restarted."""


class EndedError(VmError):
    """QEMU has ended."""


class VersionError(VmError):
    """The agent in the guest speaks another version of the protocol."""


class Session:
    """A session on a port. `greeted` is set once the agent has confirmed it.

    Args:
        port: An open port; the session closes it.
    """

    def __init__(self, port: Port) -> None:
        self.greeted = False
        self._port = port
        self._nonce = os.urandom(_NONCE)
        self._decoder = Decoder()
        self._out = bytearray()
        self._sent = 0
        self._received = 0

    def fileno(self) -> int:
        """Return the descriptor to wait on, for `events`."""
        return self._port.fileno()

    @property
    def events(self) -> int:
        """The events to wait for, as poll(2) takes them."""
        return select.POLLIN | (select.POLLOUT if self._out else 0)

    @property
    def pending(self) -> int:
        """Number of bytes that QEMU has not accepted yet."""
        return len(self._out)

    def ask(self) -> None:
        """Send the request for a session. Repeat it: a guest that still boots may drop the bytes."""
        self._sent = 0
        # The flag ends a frame that an earlier client left incomplete.
        self._out += FLAG
        self.send(b"H", bytes([VERSION]) + self._nonce)

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Queue a frame, and send as much of the queue as QEMU accepts now."""
        self._out += Frame(kind, self._sent, payload).encode()
        self._sent += 1
        self.flush()

    def flush(self) -> None:
        """Send as much of the queue as QEMU accepts now.

        Raises:
            EndedError: QEMU has ended.
        """
        try:
            while self._out and (sent := self._port.send(self._out)):
                del self._out[:sent]
        except ConnectionError as error:
            raise EndedError("QEMU has ended") from error

    def read_frames(self) -> list[Frame]:
        """Return the frames of this session that have arrived.

        Raises:
            EndedError: QEMU has ended.
            LostError: the agent does not know the session.
            VersionError: the agent speaks another version of the protocol.
        """
        data = self._port.receive()
        if data is None:
            return []
        if not data:
            raise EndedError("QEMU has ended")
        return [frame for frame in self._decoder.feed(data) if self._accept(frame)]

    def answered(self) -> bool:
        """Read what has arrived, and return whether the agent has answered `ask`; see `read_frames`."""
        self.read_frames()
        return self.greeted

    def close(self) -> None:
        """Disconnect. The agent then ends a command that still runs."""
        self._port.close()

    def _accept(self, frame: Frame) -> bool:
        """Return whether a frame is an answer in this session."""
        if frame.kind == b"W" and frame.payload[1:] == self._nonce:
            if frame.payload[0] != VERSION:
                raise VersionError(
                    f"the agent in the guest speaks version {frame.payload[0]} of its protocol, and vmdebug"
                    f" version {VERSION}",
                    hint="build the guest with this vmdebug",
                )
            self.greeted, self._received = True, 1
            return False
        if not self.greeted:
            return False  # an answer to an earlier client
        if frame.kind == b"N" or frame.sequence != self._received:
            raise LostError("the agent does not know the session")
        self._received += 1
        return True
