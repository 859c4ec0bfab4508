"""A breakpoint: its Python object, and the MI commands that set one.

Under TCG the number of breakpoints of each kind is unlimited. Under KVM GDB writes a software breakpoint into
guest memory, which the kernel must have mapped, and hardware breakpoints are the CPU's few debug registers.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, SupportsIndex

from vmdebug.debugger import mi
from vmdebug.debugger.memory import COMMAND_SECONDS
from vmdebug.errors import UsageError


class BreakpointOwner(Protocol):
    """The part of GDB that a breakpoint uses; `breakpoints.Breakpoints` implements it."""

    def info(self, number: int) -> Mapping[str, Any]:
        """Return GDB's description of it: `bkpt={…}`."""

    def change(self, command: str, where: str, timeout: float) -> None:
        """Execute an MI command that changes it."""

    def delete(self, breakpoint: Breakpoint, timeout: float) -> None:  # noqa: A002 - the word of the field
        """Delete it."""


class _Deleted(ABC):
    """A context manager that deletes at the end of the block."""

    __slots__ = ()

    @abstractmethod
    def delete(self, *, timeout: float = COMMAND_SECONDS) -> None:
        """Delete it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()


class Breakpoint(_Deleted):
    """One breakpoint or watchpoint of GDB; a context manager that deletes it at the end of the block.

    To change one while the guest runs, GDB stops the guest for a moment. Two are equal if number and place
    are.

    Args:
        number: GDB's number.
        where: The place that the caller asked for: a symbol, file:line, *address, a watched expression.
        owner: Changes and deletes it; None for one that only a test has.
        address: Its address; 0 while it is pending, and if it is at several addresses.
        temporary: Whether GDB deletes it when it is hit.
    """

    __slots__ = ("_owner", "address", "number", "temporary", "where")

    def __init__(
        self,
        number: int,
        where: str,
        owner: BreakpointOwner | None = None,
        *,
        address: int = 0,
        temporary: bool = False,
    ) -> None:
        self.number = number
        self.where = where
        self.address = address
        self.temporary = temporary
        self._owner = owner

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Breakpoint):
            return NotImplemented
        return (self.number, self.where) == (other.number, other.where)

    def __hash__(self) -> int:
        return hash((self.number, self.where))

    def __repr__(self) -> str:
        return f"Breakpoint(number={self.number}, where={self.where!r}, address={self.address:#x})"

    @property
    def hits(self) -> int:
        """How often it was hit; GDB counts only hits at which the condition held.

        Raises:
            GdbError: it has been deleted.
        """
        return int(self._gdb.info(self.number).get("times", 0))

    @property
    def addresses(self) -> tuple[int, ...]:
        """Its addresses: several for a function that was inlined at several places; none while it is pending.

        Raises:
            GdbError: it has been deleted.
        """
        described = self._gdb.info(self.number)
        rows = described.get("locations") or [described]
        return tuple(int(row["addr"], 16) for row in rows if str(row.get("addr", "")).startswith("0x"))

    @property
    def enabled(self) -> bool:
        """Whether it stops the guest.

        Raises:
            GdbError: it has been deleted.
        """
        return self._gdb.info(self.number).get("enabled") == "y"

    @property
    def condition(self) -> str:
        """The condition at which it stops the guest, in the language of the place; "" for always. Can be set.

        Raises:
            GdbError: it has been deleted; or GDB cannot evaluate the new condition, and keeps the old one.
        """
        return str(self._gdb.info(self.number).get("cond", ""))

    @condition.setter
    def condition(self, condition: str) -> None:
        words = f" {mi.quote(condition)}" if condition else ""
        self._gdb.change(f"-break-condition {self.number}{words}", self.where, COMMAND_SECONDS)

    def enable(self, *, timeout: float = COMMAND_SECONDS) -> None:
        """Enable it.

        Args:
            timeout: Seconds for a running guest to stop, and for GDB to answer.

        Raises:
            GdbError: it has been deleted.
            DeadlineError: the guest did not stop, or GDB did not answer.
        """
        self._gdb.change(f"-break-enable {self.number}", self.where, timeout)

    def disable(self, *, timeout: float = COMMAND_SECONDS) -> None:
        """Disable it, so that it does not stop the guest; see `enable`."""
        self._gdb.change(f"-break-disable {self.number}", self.where, timeout)

    def ignore(self, count: int, *, timeout: float = COMMAND_SECONDS) -> None:
        """Ignore the next `count` hits; see `enable`."""
        self._gdb.change(f"-break-after {self.number} {count}", self.where, timeout)

    def delete(self, *, timeout: float = COMMAND_SECONDS) -> None:
        """Delete it, if GDB still has it.

        Args:
            timeout: Seconds for a running guest to stop, and for GDB to answer.

        Raises:
            DeadlineError: the guest did not stop, or GDB did not answer.
        """
        self._gdb.delete(self, timeout)

    @property
    def _gdb(self) -> BreakpointOwner:
        assert self._owner is not None, "a breakpoint without its GDB"  # noqa: S101 - only tests make one
        return self._owner


@dataclass(frozen=True, slots=True)
class Catch(_Deleted):
    """The breakpoints of one `catch_panic`; a context manager that deletes them at the end of the block.

    Args:
        breakpoints: The breakpoints.
    """

    breakpoints: tuple[Breakpoint, ...]

    def delete(self, *, timeout: float = COMMAND_SECONDS) -> None:
        """Delete them, if GDB still has them; see `Breakpoint.delete`."""
        for each in self.breakpoints:
            each.delete(timeout=timeout)


def location(where: str | SupportsIndex) -> str:
    """Return a place as GDB writes it: an address or a pointer's value becomes `*0x…`."""
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
    """Return the MI command that sets a breakpoint; see "GDB/MI Breakpoint Commands" in the GDB manual.

    Args:
        where: A symbol, file:line, `*expression`.
        when: Condition, in the language of the place; GDB evaluates it at each hit.
        temporary: Whether GDB deletes it at its first stop.
        hardware: Whether it uses one of the CPU's debug registers.
        ignore: How many hits to ignore.
        thread: GDB's number of the only CPU that it is for.
        pending: Whether `where` may name a symbol that is not there yet, of a module.
    """
    words = ["-break-insert"]
    words += ["-t"] * temporary + ["-h"] * hardware + ["-f"] * pending
    words += ["-c", mi.quote(when)] if when else []
    words += ["-i", str(ignore)] if ignore else []
    words += ["-p", str(thread)] if thread is not None else []
    return " ".join([*words, "--", mi.quote(where)])


def in_hardware(command: str) -> str:
    """Return a command of `insert` with one of the CPU's debug registers."""
    return command.replace("-break-insert", "-break-insert -h", 1)


def watch(expression: str, *, access: str = "write") -> str:
    """Return the MI command that sets a watchpoint.

    Args:
        expression: What to watch; `*(int *)0x…` for an address.
        access: "write", "read", or "access" for both.

    Raises:
        UsageError: `access` is another word.
    """
    options = {"write": [], "read": ["-r"], "access": ["-a"]}
    if access not in options:
        raise UsageError(f"a watchpoint for {access!r}", hint=f"use one of {', '.join(options)}")
    return " ".join(["-break-watch", *options[access], mi.quote(expression)])


def made(payload: Mapping[str, Any], where: str, owner: BreakpointOwner) -> Breakpoint:
    """Return the breakpoint that GDB describes in its answer to `insert` or `watch`."""
    entry = next(value for value in payload.values() if isinstance(value, Mapping) and "number" in value)
    return _described(entry, where, owner)


def listed(entry: Mapping[str, Any], owner: BreakpointOwner) -> Breakpoint:
    """Return the breakpoint of a row of `-break-list`, which a GDB command has set."""
    where = entry.get("original-location") or entry.get("what") or entry.get("type", "")
    return _described(entry, str(where), owner)


def _described(entry: Mapping[str, Any], where: str, owner: BreakpointOwner) -> Breakpoint:
    address = str(entry.get("addr", ""))
    return Breakpoint(
        int(entry["number"]),
        where,
        owner,
        address=int(address, 16) if address.startswith("0x") else 0,
        temporary=entry.get("disp") == "del",
    )
