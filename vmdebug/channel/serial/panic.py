"""What a guest's console shows of its death; see panic() in the kernel's kernel/panic.c.

A kernel without a pvpanic driver tells nobody else.
"""

from __future__ import annotations

import os
from pathlib import Path

from vmdebug.channel.serial import death

LOOKED_AT = 1 << 20
"""Bytes at the end of a log that are looked at: little follows a panic's own words."""


def seen(log: Path) -> bool:
    """Whether the kernel whose console a file logs has panicked; no file: not yet."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - LOOKED_AT))
            return death.cause_in_log(stream.read()).startswith("Kernel panic")
    except FileNotFoundError:
        return False
