"""What `monitor` has a gdbstub say."""

from __future__ import annotations

import re

import gdb

_QUOTED = re.compile(r'@"(.*?)(?:\\r)?(?:\\n)?"')


def ask(command: str) -> list[str]:
    """Return the lines that the stub answers a command of its own with.

    Newer GDBs that speak MI quote each one as MI's target stream, even for `to_string`: GDB 18 does, 13 not.

    Raises:
        gdb.error: it answers none, or the guest runs.
    """
    said = gdb.execute(f"monitor {command}", to_string=True) or ""
    lines = []
    for line in said.splitlines():
        quoted = _QUOTED.fullmatch(line)
        lines.append(quoted[1] if quoted else line)
    return lines
