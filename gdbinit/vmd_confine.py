"""Takes away what lets an expression act on the host, in a GDB that an AI agent uses.

`$_shell("…")` of GDB 13 and newer runs a command; see "Convenience Functions" in GDB's manual. Text of the
agent is only ever an expression or a place, so no command of GDB (`shell`, `python`, `dump`, …) sees it.
"""

from __future__ import annotations

import gdb

RUNNERS = ("_shell",)
"""GDB's functions that act on the host."""


class _Refused(gdb.Function):
    """A function that raises; it replaces GDB's own of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._name = name

    def invoke(self, *_arguments: gdb.Value) -> gdb.Value:
        """Refuse the call.

        Raises:
            gdb.GdbError: always.
        """
        raise gdb.GdbError(
            f"${self._name} is refused here: it acts on the host\nexpressions read the guest only"
        )


def confine() -> None:
    """Replace these functions."""
    for name in RUNNERS:
        _Refused(name)
