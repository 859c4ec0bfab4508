"""The breakpoints that this process has set in GDB, with their callbacks and stop reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from vmdebug.debugger.breakpoint import Breakpoint
from vmdebug.debugger.stop import Stop

Callback: TypeAlias = Callable[[Stop], bool | None]
"""Called at each hit, while the guest is stopped. If it returns True, the guest stays stopped; otherwise it
continues."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One breakpoint.

    Args:
        breakpoint: The breakpoint.
        callback: Called at each hit; None: each hit is a stop for the caller.
        reason: The reason of its stops, if it is not `stop.BREAKPOINT`; see `stop.Stop`.
    """

    breakpoint: Breakpoint
    callback: Callback | None = None
    reason: str = ""


class BreakpointTable:
    """The entries by GDB's number. `breakpoints.Breakpoints` adds them, and `stops.Stops` looks them up."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        self._entries[entry.breakpoint.number] = entry

    def remove(self, number: int) -> None:
        """Remove an entry, if it exists."""
        self._entries.pop(number, None)

    def get(self, number: int) -> Entry | None:
        """Return the entry of a number; None for a breakpoint that a GDB command has set."""
        return self._entries.get(number)

    def all(self) -> tuple[Breakpoint, ...]:
        """Return the breakpoints."""
        return tuple(entry.breakpoint for entry in self._entries.values())

    @property
    def has_callbacks(self) -> bool:
        """Whether a breakpoint has a callback."""
        return any(entry.callback is not None for entry in self._entries.values())
