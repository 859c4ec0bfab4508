"""The texts of the files in tracefs, debugfs and /proc that a trace reads."""

from __future__ import annotations

import re

from vmdebug.errors import VmError

BUFFER_KB = 32768
"""The size of each CPU's ring buffer, in KiB; less in a guest with little memory."""

_LEAST_BUFFER_KB = 512

_BUFFER_PART = 12
"""All ring buffers have at most this part of the guest's memory."""


def cpus(cpuinfo: str) -> list[int]:
    """Return the numbers of the CPUs."""
    return [int(each) for each in re.findall(r"^processor\s*: (\d+)", cpuinfo, re.MULTILINE)] or [0]


def buffer_size(meminfo: str, count: int) -> int:
    """Return the size of the ring buffer of each of `count` CPUs, in KiB."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    most = int(total[1]) // _BUFFER_PART // count if total else _LEAST_BUFFER_KB
    return max(min(BUFFER_KB, most), _LEAST_BUFFER_KB)


def now(stats: str) -> int:
    """Return the time that a CPU's stats file tells, in ns."""
    found = re.search(r"^now ts:\s*(\d+)\.(\d+)", stats, re.MULTILINE)
    if found is None:
        raise VmError("the guest's tracefs does not tell the time", detail=stats)
    return int(found[1]) * 1_000_000_000 + int(found[2].ljust(9, "0")[:9])


def dropped(stats: str) -> int:
    """Return how many hits a CPU's stats file says were dropped."""
    return sum(map(int, re.findall(r"^(?:overrun|dropped events): (\d+)", stats, re.MULTILINE)))


def profile(text: str) -> dict[str, tuple[int, int]]:
    """Return the hits and the misses of each event of kprobe_profile."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: (int(row[1]), int(row[2])) for row in rows if len(row) == 3}  # noqa: PLR2004 - columns


def blacklist(text: str) -> list[tuple[int, int]]:
    """Return the addresses of debugfs' kprobes/blacklist."""
    return [
        (int(low, 16), int(high, 16)) for low, high in re.findall(r"^0x(\w+)-0x(\w+)", text, re.MULTILINE)
    ]
