"""One conversation with the agent in the guest, on one port."""

from __future__ import annotations

import os
import select

from vmdebug.channel.agent.frames import FLAG, Decoder, Frame
from vmdebug.channel.port import Port
from vmdebug.errors import VmError

VERSION = 1
"""Of the protocol; see `agent.c`."""

_NONCE = 16


class LostError(VmError):
    """The agent does not know the session: the guest went back to a snapshot, or the agent was restarted."""


class EndedError(VmError):
    """QEMU has ended."""


class VersionError(VmError):
    """The agent in the guest speaks another version of the protocol."""


class Session:
    """A session on a port. It exists once the agent has answered: `greeted`.

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
        self._heard = 0

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._port.fileno()

    @property
    def events(self) -> int:
        """What to wait for on it."""
        return select.POLLIN | (select.POLLOUT if self._out else 0)

    @property
    def pending(self) -> int:
        """Bytes that the guest has not taken yet."""
        return len(self._out)

    def ask(self) -> None:
        """Ask for the session; it may be asked again, for a guest that boots may drop what it hears."""
        self._sent = 0
        # The flag ends what another client left unfinished.
        self._out += FLAG
        self.say(b"H", bytes([VERSION]) + self._nonce)

    def say(self, kind: bytes, payload: bytes = b"") -> None:
        """Send a frame, as soon as the guest takes it."""
        self._out += Frame(kind, self._sent, payload).encode()
        self._sent += 1
        self.flush()

    def flush(self) -> None:
        """Send what the guest takes.

        Raises:
            EndedError: QEMU has ended.
        """
        try:
            while self._out and (sent := self._port.send(self._out)):
                del self._out[:sent]
        except ConnectionError as error:
            raise EndedError("QEMU has ended") from error

    def hear(self) -> list[Frame]:
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
        return [frame for frame in self._decoder.feed(data) if self._ours(frame)]

    def answered(self) -> bool:
        """Read what has arrived, and return whether the agent has answered `ask`; raises as `hear`."""
        self.hear()
        return self.greeted

    def close(self) -> None:
        """Disconnect; the agent ends what runs."""
        self._port.close()

    def _ours(self, frame: Frame) -> bool:
        if frame.kind == b"W" and frame.payload[1:] == self._nonce:
            if frame.payload[0] != VERSION:
                raise VersionError(
                    f"the agent in the guest speaks version {frame.payload[0]} of its protocol, and vmdebug"
                    f" version {VERSION}",
                    hint="build the guest with this vmdebug",
                )
            self.greeted, self._heard = True, 1
            return False
        if not self.greeted:
            return False  # another client's
        if frame.kind == b"N" or frame.sequence != self._heard:
            raise LostError("the agent does not know the session")
        self._heard += 1
        return True
