"""Breakpoints: how one is asked for, and the object that stands for one in GDB.

With TCG all kinds are unlimited. With KVM a software breakpoint is written into
guest memory, so it needs the kernel to be there, and hardware ones are few.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, SupportsIndex, TypeAlias

from vmdebug.debugger import mi
from vmdebug.errors import UsageError

if TYPE_CHECKING:
    from vmdebug.debugger.stop import Stop

Callback: TypeAlias = "Callable[[Stop], bool | None]"
"""Called at each hit, with the guest stopped; True stops there, anything else goes on."""


class Owner(Protocol):
    """What a breakpoint asks of GDB; `gdb.Gdb` answers."""

    def breakpoint_info(self, number: int) -> Mapping[str, Any]:
        """Return what GDB holds about it: `bkpt={…}`."""

    def change(self, command: str, where: str) -> None:
        """Carry out an MI command that changes it."""

    def delete(self, breakpoint: Breakpoint) -> None:  # noqa: A002 - the word of the field
        """Take it out."""


class _Block:
    """Gone at the end of its block."""

    __slots__ = ()

    def delete(self) -> None:
        """Take it out."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()


@dataclass(frozen=True, slots=True)
class Breakpoint(_Block):
    """One breakpoint or watchpoint of GDB's; as a context manager it is gone at the end of the block.

    What changes it stops a running guest, which then goes on.

    Args:
        number: GDB's number.
        where: What was asked for: a symbol, file:line, *address, a watched expression.
        address: Where it is; 0 while pending, and where it is in several places.
        temporary: GDB deletes it when it is hit.
        callback: Called at each hit.
        reason: Why the guest stops there, where that is more than that a breakpoint was hit; see `stop.Stop`.
    """

    number: int
    where: str
    address: int = field(default=0, compare=False)
    temporary: bool = field(default=False, compare=False)
    callback: Callback | None = field(default=None, repr=False, compare=False)
    reason: str = field(default="", repr=False, compare=False)
    _owner: Owner | None = field(default=None, repr=False, compare=False)

    @property
    def hits(self) -> int:
        """How often it was hit; GDB counts only where the condition held.

        Raises:
            GdbError: it is no longer there.
        """
        return int(self._gdb.breakpoint_info(self.number).get("times", 0))

    @property
    def enabled(self) -> bool:
        """Whether it stops the guest.

        Raises:
            GdbError: it is no longer there.
        """
        return self._gdb.breakpoint_info(self.number).get("enabled") == "y"

    @property
    def condition(self) -> str:
        """When it stops the guest; "" is always.

        Raises:
            GdbError: it is no longer there.
        """
        return str(self._gdb.breakpoint_info(self.number).get("cond", ""))

    def enable(self) -> None:
        """Have it stop the guest again.

        Raises:
            GdbError: it is no longer there.
        """
        self._gdb.change(f"-break-enable {self.number}", self.where)

    def disable(self) -> None:
        """Leave it where it is, and have it stop nothing; raises as `enable` does."""
        self._gdb.change(f"-break-disable {self.number}", self.where)

    def when(self, condition: str) -> None:
        """Have it stop the guest only where a condition holds.

        Args:
            condition: In the language of the place; "" is always.

        Raises:
            GdbError: it cannot be evaluated there, and the old one stays; or it is no longer there.
        """
        words = f" {mi.quote(condition)}" if condition else ""
        self._gdb.change(f"-break-condition {self.number}{words}", self.where)

    def ignore(self, count: int) -> None:
        """Pass over so many hits from now on; raises as `enable` does."""
        self._gdb.change(f"-break-after {self.number} {count}", self.where)

    def delete(self) -> None:
        """Take it out; nothing happens when GDB has it no more."""
        self._gdb.delete(self)

    @property
    def _gdb(self) -> Owner:
        assert self._owner is not None, "a breakpoint without its GDB"  # noqa: S101 - made by hand, in a test
        return self._owner


def location(where: str | SupportsIndex) -> str:
    """Return where a breakpoint goes as GDB writes it: an address, or a pointer's value, becomes `*0x…`."""
    return where if isinstance(where, str) else f"*{operator.index(where):#x}"


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

    Raises:
        UsageError: another one.
    """
    options = {"write": [], "read": ["-r"], "access": ["-a"]}
    if access not in options:
        raise UsageError(f"a watchpoint for {access!r}", hint=f"it is for one of {', '.join(options)}")
    return " ".join(["-break-watch", *options[access], mi.quote(expression)])


@dataclass(frozen=True, slots=True)
class Catch(_Block):
    """Breakpoints that stand for one thing; as a context manager they are gone at the end of the block.

    Args:
        breakpoints: Those.
    """

    breakpoints: tuple[Breakpoint, ...]

    def delete(self) -> None:
        """Take them out; nothing happens when GDB has them no more."""
        for each in self.breakpoints:
            each.delete()


def made(
    payload: Mapping[str, Any],
    where: str,
    owner: Owner,
    *,
    callback: Callback | None = None,
    reason: str = "",
) -> Breakpoint:
    """Return the breakpoint that GDB's answer to `insert` or `watch` describes."""
    entry = next(value for value in payload.values() if isinstance(value, Mapping) and "number" in value)
    return Breakpoint(
        number=int(entry["number"]),
        where=where,
        address=_address(entry),
        temporary=entry.get("disp") == "del",
        callback=callback,
        reason=reason,
        _owner=owner,
    )


def listed(entry: Mapping[str, Any], owner: Owner) -> Breakpoint:
    """Return the breakpoint that a row of `-break-list` describes, which a command has set."""
    where = entry.get("original-location") or entry.get("what") or entry.get("type", "")
    return Breakpoint(
        number=int(entry["number"]),
        where=str(where),
        address=_address(entry),
        temporary=entry.get("disp") == "del",
        _owner=owner,
    )


def _address(entry: Mapping[str, Any]) -> int:
    word = str(entry.get("addr", ""))
    return int(word, 16) if word.startswith("0x") else 0
