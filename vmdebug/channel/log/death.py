"""Detects in a console's output that the guest has died; pure patterns.

The texts are those of the kernel: `panic()` in kernel/panic.c, `kernel_halt()`,
`kernel_power_off()` and `kernel_restart()` in kernel/reboot.c, the banner of
init/version.c.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# A kernel message is at the start of a line or after a time stamp. A program that quotes it, such as
# "grep 'Kernel panic'", prints other text before it.
_START = rb"(?:^|[\r\n]|\] )"

_DEATHS = re.compile(
    _START + rb"(?:"
    rb"(?P<panic>Kernel panic - not syncing(?:: [^\r\n]*)?)"
    rb"|(?P<halt>reboot: System halted)"
    rb"|(?P<off>reboot: Power down)"
    rb"|(?P<restart>reboot: (?:Restarting system|machine restart)[^\r\n]*)"
    rb")[\r\n]"
)

_RESTORED = b"vmdebug: restored the snapshot "

_BOOT = re.compile(_START + rb"(?:Linux version |" + _RESTORED + rb")")

WINDOW = 1024
"""Largest length of such a message in bytes; LOG_LINE_MAX of kernel/printk/printk.c."""

END_OF_PANIC = b"---[ end Kernel panic"
"""The last line of a panic, after its trace."""


def cause(text: bytes) -> str:
    """Return how the guest died, according to a part of its console's output; "" if it lives."""
    found = _DEATHS.search(text)
    if found is None:
        return ""
    if found["panic"]:
        return found["panic"].decode(errors="replace")
    return {"halt": "the guest halted", "off": "the guest powered off", "restart": "the guest restarted"}[
        found.lastgroup or "halt"
    ]


def cause_in_log(log: bytes) -> str:
    """Return how the guest died, according to its whole log; "" if it lives.

    Only output after the last boot (by kexec), and after the last restored snapshot, counts.
    """
    boots = [match.start() for match in _BOOT.finditer(log)]
    return cause(log[boots[-1] if boots else 0 :])


def restored(tag: str) -> bytes:
    """Return the mark to write into the log when a snapshot is restored."""
    return b"\r\n" + _RESTORED + tag.encode() + b"\r\n"


def is_restored_mark(line: str) -> bool:
    """Return whether a line of a log is a mark from `restored`."""
    return line.startswith(_RESTORED.decode())


class Watch:
    """Looks for a death in a stream that arrives in pieces."""

    def __init__(self) -> None:
        self._recent = b""

    def feed(self, data: bytes) -> str:
        """Return how the guest died, according to the stream so far; "" if it lives."""
        text = self._recent + data
        self._recent = text[-WINDOW:]
        return cause(text)


LOOKED_AT = 1 << 20
"""Bytes at the end of a log in which a death is sought; a panic's messages are near the end."""


def panicked(log: Path) -> bool:
    """Return whether the kernel has panicked, according to its console's log; False if there is no log.

    A kernel without a pvpanic driver reports a panic only there.
    """
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - LOOKED_AT))
            return cause_in_log(stream.read()).startswith("Kernel panic")
    except FileNotFoundError:
        return False
