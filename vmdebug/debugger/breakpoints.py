"""Breakpoints: how one is asked for, and the object that stands for one in GDB.

With TCG all kinds are unlimited. With KVM a software breakpoint is written into
guest memory, so it needs the kernel to be there, and hardware ones are few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from vmdebug.debugger import mi


class Owner(Protocol):
    """What a breakpoint asks of GDB; `gdb.Gdb` answers."""

    def breakpoint_info(self, number: int) -> Mapping[str, Any]:
        """Return what GDB holds about it: `bkpt={…}`."""

    def delete(self, breakpoint: Breakpoint) -> None:  # noqa: A002 - the word of the field
        """Take it out."""


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """One breakpoint or watchpoint of GDB's; as a context manager it is gone at the end of the block.

    Args:
        number: GDB's number.
        where: What was asked for: a symbol, file:line, *address, a watched expression.
        address: Where it is; 0 while pending, and where it is in several places.
        temporary: GDB deletes it when it is hit.
    """

    number: int
    where: str
    address: int = field(default=0, compare=False)
    temporary: bool = field(default=False, compare=False)
    _owner: Owner | None = field(default=None, repr=False, compare=False)

    @property
    def hits(self) -> int:
        """How often it was hit; GDB counts only where the condition held.

        Raises:
            GdbError: it is no longer there.
        """
        return int(self._gdb.breakpoint_info(self.number).get("times", 0))

    def delete(self) -> None:
        """Take it out; nothing happens when GDB has it no more.

        A running guest is stopped for it and goes on.
        """
        self._gdb.delete(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

    @property
    def _gdb(self) -> Owner:
        assert self._owner is not None, "a breakpoint without its GDB"  # noqa: S101 - made by hand, in a test
        return self._owner


def location(where: str | int) -> str:
    """Return where a breakpoint goes as GDB writes it: an address becomes `*0x…`."""
    return f"*{where:#x}" if isinstance(where, int) else where


def insert(
    where: str,
    *,
    when: str = "",
    temporary: bool = False,
    hardware: bool = False,
    ignore: int = 0,
    thread: int | None = None,
    pending: bool = False,
) -> str:
    """Return the MI command for a breakpoint; see "GDB/MI Breakpoint Commands" in the GDB manual.

    Args:
        where: A symbol, file:line, `*expression`.
        when: Condition, in the language of the place; GDB evaluates it at each hit.
        temporary: Whether it goes with its first stop.
        hardware: Whether it takes one of the CPU's debug registers.
        ignore: How many hits to pass over.
        thread: GDB's number of the one CPU that it is for.
        pending: Whether it may name what isn't there yet: a module's symbol.
    """
    words = ["-break-insert"]
    words += ["-t"] * temporary + ["-h"] * hardware + ["-f"] * pending
    words += ["-c", mi.quote(when)] if when else []
    words += ["-i", str(ignore)] if ignore else []
    words += ["-p", str(thread)] if thread is not None else []
    return " ".join([*words, "--", mi.quote(where)])


def watch(expression: str, *, access: str = "write") -> str:
    """Return the MI command for a watchpoint.

    Args:
        expression: What is watched; `*(int *)0x…` for an address.
        access: "write", "read" or "access", which is both.
    """
    option = {"write": [], "read": ["-r"], "access": ["-a"]}[access]
    return " ".join(["-break-watch", *option, mi.quote(expression)])


def made(payload: Mapping[str, Any], where: str, owner: Owner) -> Breakpoint:
    """Return the breakpoint that GDB's answer to `insert` or `watch` describes."""
    entry = next(value for value in payload.values() if isinstance(value, Mapping) and "number" in value)
    address = str(entry.get("addr", ""))
    return Breakpoint(
        number=int(entry["number"]),
        where=where,
        address=int(address, 16) if address.startswith("0x") else 0,
        temporary=entry.get("disp") == "del",
        _owner=owner,
    )
