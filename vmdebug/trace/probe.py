"""The request of a trace: places, expressions, condition; and the parser of their command-line form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypedDict, get_args

import msgspec

from vmdebug.errors import UsageError

Overflow = Literal["block", "drop"]


class Probe(msgspec.Struct, frozen=True, array_like=True):
    """A place to trace, and what to collect there.

    Args:
        where: A symbol, file:line, `*expression`, or a tracepoint with its group (`sched:sched_switch`); to
            begin with also a pattern (`vfs_*`), or SYMBOL+N for the line N lines below the start of a
            function, which `places.resolved` replaces.
        args: Expressions in the language of the place; fields of the tracepoint.
    """

    where: str
    args: tuple[str, ...] = ()


class Wanted(msgspec.Struct, frozen=True):
    """The request of a trace.

    Args:
        probes: The places.
        when: Condition of a hit; "" for none. A call at which it cannot be evaluated is not a hit; the
            trace's `notes` report it.
        count: Maximum number of hits; None: no limit.
        backtrace: Whether to collect the frames.
        ret: Whether to collect return values.
        count_only: Whether to count the hits of each probe, and collect nothing else.
        overflow: What a collector with a buffer does when it is full: "block" makes the guest wait, "drop"
            drops hits and counts them.
        until: An expression; the first hit at which it is true is the last one. "" for none.
        longer: Only calls that took longer than so many seconds are hits; None for all.
        callees: How many levels of the functions that the places call are places, too; `resolved` adds them.
        matched: The functions among the places that a pattern has matched: where they are inlined, there is
            no hit, and those that have no such expression are left out.
        sched: Whether to record what the scheduler does, beside the hits.
        irqs: Whether to record interrupts, beside the hits.
    """

    probes: tuple[Probe, ...]
    when: str = ""
    count: int | None = None
    backtrace: bool = False
    ret: bool = False
    count_only: bool = False
    overflow: Overflow = "block"
    until: str = ""
    longer: float | None = None
    callees: int = 0
    matched: tuple[str, ...] = ()
    sched: bool = False
    irqs: bool = False

    @property
    def activity(self) -> tuple[str, ...]:
        """The groups of `TRACEPOINTS` that are recorded beside the hits."""
        return tuple(name for name, wants in (("sched", self.sched), ("irqs", self.irqs)) if wants)

    @property
    def expressions(self) -> tuple[str, ...]:
        """Every expression that is evaluated at a hit, the condition first."""
        args = (each for probe in self.probes for each in probe.args)
        return tuple(each for each in (self.when, *args) if each)


class TraceOptions(TypedDict, total=False):
    """The keyword arguments of `DebugSession.trace` and `Gdb.trace`; all have a default.

    Args:
        args: Expressions to collect at each hit, in the language of the place, if there is one place.
        when: Condition of a hit, in the same language.
        count: Maximum number of hits.
        backtrace: Whether to collect the frames.
        ret: Whether to collect return values; each needs a second stop if GDB collects.
        count_only: Whether to count the hits of each place (`Trace.counts`), and collect nothing else.
        overflow: What the plugin does when its buffer of hits is full: "block" makes the guest wait, "drop"
            drops hits, and `Trace.notes` has their number.
        until: An expression; the first hit at which it is true is the last one.
        longer: Only calls that took longer than so many seconds, measured on the host, are hits.
        callees: How many levels of the functions that the places call are traced, too: those that the
            compiler knows, not those called by pointers. `when` is not for them.
        sched: Whether to record when CPUs switch between tasks and wake them, in `Trace.activity`; only the
            guest's kernel does.
        irqs: Whether to record interrupts and soft interrupts there.
    """

    args: Sequence[str]
    when: str
    count: int | None
    backtrace: bool
    ret: bool
    count_only: bool
    overflow: Overflow
    until: str
    longer: float | None
    callees: int
    sched: bool
    irqs: bool


def wanted(
    where: str | Sequence[Probe],
    *,
    args: Sequence[str] = (),
    when: str = "",
    count: int | None = None,
    backtrace: bool = False,
    ret: bool = False,
    count_only: bool = False,
    overflow: Overflow = "block",
    until: str = "",
    longer: float | None = None,
    callees: int = 0,
    sched: bool = False,
    irqs: bool = False,
) -> Wanted:
    """Return the request of a trace of one place, or of several.

    Args:
        where: A symbol, file:line, `*expression`; or several probes with their own expressions; none if only
            the scheduler or interrupts are recorded.
        args: See `TraceOptions`, as for the others.
        when: See there.
        count: See there.
        backtrace: See there.
        ret: See there.
        count_only: See there.
        overflow: See there.
        until: See there.
        longer: See there.
        callees: See there.
        sched: See there.
        irqs: See there.

    Raises:
        UsageError: there is no place, an argument has the wrong form, or two of them exclude each other.
    """
    only_activity = (sched or irqs) and not isinstance(where, str) and not where
    probes = (_one(where, args),) if isinstance(where, str) else _several(where, args, none=only_activity)
    if longer is not None and not longer >= 0:
        raise UsageError(f"longer={longer!r} is no number of seconds", hint="give a number from 0 on")
    more = backtrace or ret or until or longer is not None or sched or irqs
    if count_only and (more or any(probe.args for probe in probes)):
        raise UsageError(
            "a trace that only counts (count_only) collects no expressions, backtraces or return values, and"
            " nothing beside the hits",
            hint="leave them out, or count the hits",
        )
    if overflow not in get_args(Overflow):
        raise UsageError(f"overflow={overflow!r} is neither 'block' nor 'drop'", hint="give one of them")
    ret = ret or longer is not None  # the time that a call takes is known when it returns
    return Wanted(
        probes,
        when=when,
        count=count,
        backtrace=backtrace,
        ret=ret,
        count_only=count_only,
        overflow=overflow,
        until=until,
        longer=longer,
        callees=callees,
        sched=sched,
        irqs=irqs,
    )


_FORM = 'gdb.trace("vfs_read", args=["count"]) or gdb.trace([Probe("vfs_read", ("count",)), Probe("open")])'


def _one(where: str, args: Sequence[str]) -> Probe:
    """Return the probe of one place.

    Raises:
        UsageError: the place or the expressions have the wrong form.
    """
    if not isinstance(args, list | tuple) or not all(isinstance(each, str) for each in args):
        raise UsageError(f"args={args!r} is not a list of expressions", hint=f"write {_FORM}")
    if _SYMBOL_AND_EXPRESSIONS.fullmatch(where):
        symbol, _, rest = where.partition(":")
        expressions = ", ".join(f'"{each}"' for each in _split(rest))
        raise UsageError(
            f"{where!r} is the command line's form of a place and its expressions",
            hint=f'write gdb.trace("{symbol}", args=[{expressions}])',
        )
    return Probe(where, tuple(args))


_SYMBOL_AND_EXPRESSIONS = re.compile(r"\w+:(?!:)(?!\d+$).+")
"""`vfs_read:count`, but neither `open.c:1308` nor `*expression`."""


def _several(probes: Sequence[Probe], args: Sequence[str], *, none: bool = False) -> tuple[Probe, ...]:
    """Return several probes.

    Args:
        probes: The probes.
        args: The expressions of a single one.
        none: Whether there may be no probe.

    Raises:
        UsageError: there is none, an element is not a probe, or `args` is given, too.
    """
    if not isinstance(probes, list | tuple) or not all(isinstance(each, Probe) for each in probes):
        raise UsageError(f"{probes!r} is neither a place nor a list of probes", hint=f"write {_FORM}")
    if not probes and not none:
        raise UsageError("a trace needs at least one place", hint="name one: gdb.trace('vfs_read')")
    if args:
        raise UsageError("args= goes with one place, but there are several probes", hint=f"write {_FORM}")
    return tuple(probes)


def parse(words: Sequence[str]) -> tuple[Probe, ...]:
    """Return the probes that the command line names.

    They are written SYMBOL[:EXPR,…], FILE:LINE[:EXPR,…] or GROUP:EVENT:[FIELD,…].

    Raises:
        UsageError: a word names no place.
    """
    return tuple(_probe(word) for word in words)


_TRACEPOINT = re.compile(r"([A-Za-z_]\w*:[A-Za-z_]\w*):((?!:).*)$")
"""`sched:sched_switch:next_comm,next_pid`; without fields, a colon at the end tells it from SYMBOL:EXPR."""


def _probe(word: str) -> Probe:
    tracepoint = _TRACEPOINT.match(word)
    if tracepoint:
        return Probe(tracepoint[1], tuple(_split(tracepoint[2])))
    where, _, rest = word.partition(":")
    line, _, more = rest.partition(":")
    if line.isdigit():
        where, rest = f"{where}:{line}", more
    if not where:
        raise UsageError(f"{word!r} names no place", hint="write it SYMBOL:EXPR,EXPR: vfs_read:count")
    return Probe(where, tuple(_split(rest)))


def _split(text: str) -> list[str]:
    """Return the expressions between commas; a comma inside brackets does not separate."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
