"""Output of `monitor` commands."""

from __future__ import annotations

import re

import gdb

_QUOTED = re.compile(r'@"(.*?)(?:\\r)?(?:\\n)?"')


def ask(command: str) -> list[str]:
    """Return the lines that the gdbstub prints for one of its own commands.

    With MI, GDB 18 quotes each line as MI's target stream even for `to_string`; GDB 13 does not.

    Raises:
        gdb.error: the stub does not know the command, or the guest runs.
    """
    said = gdb.execute(f"monitor {command}", to_string=True) or ""
    lines = []
    for line in said.splitlines():
        quoted = _QUOTED.fullmatch(line)
        lines.append(quoted[1] if quoted else line)
    return lines
