"""Finds kernel memory that a test has leaked, with kmemleak; see Documentation/dev-tools/kmemleak.rst.

A clone also has the leaks of its template's boot. So a leak counts only if the memory was allocated after the
test began: kmemleak prints the value of jiffies at the allocation.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

from vmdebug.channel.shell import ExecResult
from vmdebug.errors import UsageError

SCAN_SECONDS = 120.0
"""How long a scan may take; in a guest of 256 MB under TCG it takes a few seconds."""

SHOWN = 20_000
"""How many characters of kmemleak's report an error shows."""

Exec = Callable[..., ExecResult]
"""`DebugSession.exec`."""

_NOW = "sed -n 's/^jiffies: //p' /proc/timer_list | head -n 1"
"""Prints jiffies; see `print_cpu` in kernel/time/timer_list.c."""

_SCAN = """\
leaks=/sys/kernel/debug/kmemleak
[ -e $leaks ] || mount -t debugfs none /sys/kernel/debug
[ -e $leaks ] || exit 3
sleep 6
echo scan >$leaks && echo scan >$leaks && cat $leaks
"""
"""kmemleak ignores memory that is younger than 5 s (MSECS_MIN_AGE in mm/kmemleak.c)."""

_NO_KMEMLEAK = 3

_OBJECT = re.compile(r"^unreferenced object ", re.MULTILINE)
_JIFFIES = re.compile(r"\bjiffies (\d+)")


def now(run: Exec) -> int:
    """Return the kernel's jiffies; 0 if they cannot be read.

    Raises:
        VmdebugError: the guest's shell does not answer.
    """
    jiffies = run(_NOW).stdout.strip()
    return int(jiffies) if jiffies.isdecimal() else 0


def find(run: Exec, since: int) -> str:
    """Run a scan, and return kmemleak's report of the leaks; "" if there are none.

    Args:
        run: Runs a command in the guest.
        since: Jiffies before which leaks do not count.

    Raises:
        UsageError: this kernel does not have kmemleak.
        VmdebugError: the guest's shell does not answer.
    """
    done = run(_SCAN, timeout=SCAN_SECONDS)
    if done.status == _NO_KMEMLEAK:
        raise UsageError(
            "the test's marker asks for kmemleak, which this guest does not have",
            hint="build its kernel with CONFIG_DEBUG_KMEMLEAK, and boot it with kmemleak=on",
        )
    return "".join(leaks(done.stdout, since))[:SHOWN]


def leaks(report: str, since: int) -> list[str]:
    """Return the records of a report whose memory was allocated after `since`.

    Args:
        report: The content of /sys/kernel/debug/kmemleak.
        since: See `find`.
    """
    starts = [found.start() for found in _OBJECT.finditer(report)]
    records = [report[start:end] for start, end in itertools.pairwise([*starts, len(report)])]
    return [record for record in records if _allocated(record) >= since]


def _allocated(record: str) -> float:
    found = _JIFFIES.search(record)
    return int(found[1]) if found else float("inf")
