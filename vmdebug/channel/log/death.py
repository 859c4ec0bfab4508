"""How a console tells that its machine has died; pure patterns.

The texts are the kernel's own: `panic()` in kernel/panic.c, `kernel_halt()`,
`kernel_power_off()` and `kernel_restart()` in kernel/reboot.c, the banner of
init/version.c.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# A kernel message starts a line or follows its time stamp. Text that a program
# only quotes ("grep 'Kernel panic'") stands behind something else.
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
"""How many bytes a death can span; LOG_LINE_MAX of kernel/printk/printk.c."""

END_OF_PANIC = b"---[ end Kernel panic"
"""What a panic prints last, after the trace."""


def cause(text: bytes) -> str:
    """Return how the machine died by a piece of its console; "" while it lives."""
    found = _DEATHS.search(text)
    if found is None:
        return ""
    if found["panic"]:
        return found["panic"].decode(errors="replace")
    return {"halt": "the guest halted", "off": "the guest powered off", "restart": "the guest restarted"}[
        found.lastgroup or "halt"
    ]


def cause_in_log(log: bytes) -> str:
    """Return how the machine died by its whole log; "" while it lives.

    A kernel that was started after a panic, by kexec, is a live machine, and so is
    one that was restored from a snapshot: what lies before the last of these does not count.
    """
    boots = [match.start() for match in _BOOT.finditer(log)]
    return cause(log[boots[-1] if boots else 0 :])


def restored(tag: str) -> bytes:
    """Return what is written into a log when a machine goes back to a snapshot."""
    return b"\r\n" + _RESTORED + tag.encode() + b"\r\n"


def went_back(line: str) -> bool:
    """Say whether a line of a log is what `restored` wrote."""
    return line.startswith(_RESTORED.decode())


class Watch:
    """Looks for a death in a stream, across the pieces that it comes in."""

    def __init__(self) -> None:
        self._recent = b""

    def feed(self, data: bytes) -> str:
        """Return how the machine died, by what has come so far; "" while it lives."""
        text = self._recent + data
        self._recent = text[-WINDOW:]
        return cause(text)


LOOKED_AT = 1 << 20
"""Bytes at the end of a log that `panicked` reads: little follows a panic's own messages."""


def panicked(log: Path) -> bool:
    """Say whether the kernel whose console a file logs has panicked; no file: not yet.

    A kernel without a pvpanic driver tells nobody else.
    """
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - LOOKED_AT))
            return cause_in_log(stream.read()).startswith("Kernel panic")
    except FileNotFoundError:
        return False
