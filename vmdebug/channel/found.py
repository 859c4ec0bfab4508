"""Which way into a guest answered: kept in a file beside the VM, and described for people."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal, Self

import msgspec

Kind = Literal["agent", "agent-uart", "guest-agent", "serial"]
"""The ways: the agent on virtio-serial ports or on a UART, qemu-guest-agent, the shell on the console."""

ORDER: tuple[Kind, ...] = ("agent", "agent-uart", "guest-agent", "serial")
"""The ways, the best first."""

REASONS: dict[Kind, str] = {
    "agent": "",
    "agent-uart": "the guest has no virtio console",
    "guest-agent": "the guest does not run vmdebug's agent",
    "serial": "no agent answers in the guest",
}
"""Why no better way than this one is used, unless a better one says why it cannot be."""

WORDS: dict[Kind, str] = {
    "agent": "vmdebug's agent, on virtio-serial ports",
    "agent-uart": "vmdebug's agent, on a second UART, one command at a time",
    "guest-agent": "qemu-guest-agent",
    "serial": "the shell on the serial line, one command at a time",
}
"""The description of each way."""


class Found(msgspec.Struct, frozen=True):
    """The way into a guest.

    Args:
        kind: Which way.
        reason: Why no better way is used; "" for the best one.
    """

    kind: Kind
    reason: str = ""

    def describe(self) -> str:
        """Return the way, and why no better one is used, in words."""
        return f"{WORDS[self.kind]}: {self.reason}" if self.reason else WORDS[self.kind]

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the way that `write` stored; None if the file is missing or has another format."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(path.read_bytes(), type=cls)
        return None

    def write(self, path: Path) -> None:
        """Store the way; do nothing if the run directory has gone with QEMU."""
        with contextlib.suppress(OSError):
            path.write_bytes(msgspec.json.encode(self))
