"""The events that a trace needs in the guest, and the functions that make values of their records."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

from vmdebug.arch import Arch
from vmdebug.errors import UsageError
from vmdebug.trace.expressions.compiled import Compiled, CompiledPlace
from vmdebug.trace.expressions.generate import Shape
from vmdebug.trace.expressions.operations import WORD
from vmdebug.trace.guest import filters, values
from vmdebug.trace.guest.fetches import FIRST_FIELD, Computation, Fetches, Names, Record, text_of
from vmdebug.trace.guest.formats import Format, Place
from vmdebug.trace.guest.values import Loaded, Put, Register
from vmdebug.trace.hit import Argument
from vmdebug.trace.probe import Wanted

DEFINITIONS = "kprobe_events"
"""The file of the definitions of kprobe events."""

FPROBE_DEFINITIONS = "dynamic_events"
"""The file of the definitions of fprobe events, among others; see Documentation/trace/fprobetrace.rst."""

_REGISTER = re.compile(r"%(\w+)")
_TRACEPOINT = re.compile(r"[A-Za-z_]\w*:[A-Za-z_]\w*")

MOST_CALLS = 4096
"""Calls of a function that may be pending until their return: KRETPROBE_MAXACTIVE_MAX of trace_kprobe.c."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a trace.

    Args:
        probe: The index of the probe.
        name: Its name; that of a tracepoint has its group before a colon.
        address: The address of its probe; 0 for a tracepoint.
        definition: Its definition for kprobe_events, with `{name}` for its name; "" for a tracepoint.
        fprobe: The same as an fprobe event, which costs the guest less; "" if it cannot be one.
        fields: The names of the fields to read, in the order of the record after the CPU and the pid.
        arguments: The expressions, and where their values are in the record, or how to compute them.
        condition: The condition that is checked for each record; None for none.
        filter: The condition that tracefs checks; "" if it cannot.
        exact: Whether `condition` need not be checked if tracefs does.
        stack: The place of the stack pointer; None if returns are not recorded.
        returns: Whether it is the return from a function.
    """

    probe: int
    name: str
    address: int = 0
    definition: str = ""
    fprobe: str = ""
    fields: tuple[str, ...] = ()
    arguments: tuple[tuple[str, int | Computation], ...] = ()
    condition: Callable[[Record], int] | None = None
    filter: str = ""
    exact: bool = False
    stack: int | None = None
    returns: bool = False


TEXT = "_stext"
"""The symbol of the start of the kernel's code. `$retval` needs a symbol: with an address, it is refused."""


def kprobes(trace: Compiled, wanted: Wanted, row: Arch, text: int) -> tuple[Event, ...]:
    """Return the events of the places of a trace.

    Args:
        trace: The trace, compiled for the kernel that runs.
        wanted: The trace.
        row: The kernel's architecture.
        text: The linked address of `TEXT`.

    Raises:
        NotCompiledError: tracefs cannot fetch what an expression needs.
    """
    found: list[Event] = []
    for number, place in enumerate(trace.places):
        entry = _entry(trace, wanted, row, place, f"p{number}")
        found.append(entry)
        result = trace.results[place.probe]
        if place.ranges and result is not None:
            found.append(_return(place, result, place.address - trace.slide - text, f"r{number}"))
    return tuple(found)


def as_fprobe(event: Event, function: str, row: Arch) -> Event:
    """Return the event of a function's start or return with its definition as an fprobe event, too.

    Those have no registers, but arguments: an event that needs another register stays as it is.

    Args:
        event: The event of a kprobe.
        function: The name of the function, which no other one has.
        row: The kernel's architecture.
    """
    _, _, rest = event.definition.partition(" ")
    _, _, fetches = rest.partition(" ")
    arguments = {name: f"$arg{number}" for number, name in enumerate(row.fetch_arguments, 1)}
    found = {*_REGISTER.findall(fetches)}
    if not found <= arguments.keys():
        return event
    text = _REGISTER.sub(lambda match: arguments[match[1]], fetches)
    place = f"{function}%return" if event.returns else function
    return msgspec.structs.replace(event, fprobe=f"f:{{name}} {place} {text}".rstrip())


def is_tracepoint(where: str) -> bool:
    """Return whether a place is a tracepoint: "sched:sched_switch"."""
    return bool(_TRACEPOINT.fullmatch(where))


def tracepoint(probe: int, where: str, when: str) -> Event:
    """Return the event of a tracepoint, without its fields.

    Args:
        probe: The index of the probe.
        where: Its group and its name.
        when: The condition, which tracefs evaluates: its filters are written as in C.
    """
    return Event(probe=probe, name=where, filter=when, exact=True)


def with_fields(event: Event, texts: Sequence[str], form: Format) -> Event:
    """Return the event of a tracepoint with the fields that a trace wants.

    Args:
        event: The event.
        texts: The names of the fields.
        form: The event's format.

    Raises:
        UsageError: it has no such field.
    """
    own = [name for name in form.places if not name.startswith("common_")]
    for text in texts:
        if text not in form.places:
            raise UsageError(
                f"the tracepoint {event.name} has no field {text}", hint=f"its fields are {', '.join(own)}"
            )
    arguments = tuple((text, _field(form.places[text], FIRST_FIELD + n)) for n, text in enumerate(texts))
    return msgspec.structs.replace(event, fields=tuple(texts), arguments=arguments)


def _field(place: Place, number: int) -> int | Computation:
    """Return where the value of a tracepoint's field is, or how to compute it."""
    if place.is_text:
        return lambda record: text_of(record[number])
    if place.dynamic or place.array or place.size not in (1, 2, 4, 8):
        return lambda record: bytes(record[number]).hex()
    return number


def _entry(trace: Compiled, wanted: Wanted, row: Arch, place: CompiledPlace, name: str) -> Event:
    fetches = Fetches(_names(trace, row))
    puts = values.executed(place.code, trace.registers, trace.text)
    condition, filtered, exact = _condition(puts, fetches, wanted)
    arguments = _arguments(puts, fetches, trace.shapes[place.probe], wanted.probes[place.probe].args)
    stack = fetches.add("$stack", "u64") if place.ranges else None
    names = tuple(f"a{number}" for number in range(len(fetches.fields)))
    defined = " ".join(f"{name}={each.definition}" for name, each in zip(names, fetches.fields, strict=True))
    return Event(
        probe=place.probe,
        name=name,
        address=place.address,
        definition=f"p:{{name}} {place.address:#x} {defined}".rstrip(),
        fields=names,
        arguments=arguments,
        condition=condition,
        filter=filtered,
        exact=exact,
        stack=stack,
    )


def _return(place: CompiledPlace, result: Shape, offset: int, name: str) -> Event:
    kind = f"{'s' if result.kind == 'signed' else 'u'}{8 * result.size}"
    return Event(
        probe=place.probe,
        name=name,
        address=place.address,
        definition=f"r{MOST_CALLS}:{{name}} {TEXT}+{offset:#x} a0=$retval:{kind} a1=$stack:u64",
        fields=("a0", "a1"),
        stack=FIRST_FIELD + 1,
        returns=True,
    )


def _names(trace: Compiled, row: Arch) -> Names:
    where, task = trace.addresses, None
    if where.current:
        slid = 0 if where.current < int(row.debug.zero_based_below, 16) else trace.slide
        at = values.signed64(where.current + slid & WORD)
        task = Loaded(Register(row.debug.per_cpu_register), at, 8)
    registers = dict(zip(row.dwarf_registers, row.fetch_registers, strict=True))
    return Names(registers, task, where.pid, where.comm)


def _condition(
    puts: Sequence[Put], fetches: Fetches, wanted: Wanted
) -> tuple[Callable[[Record], int] | None, str, bool]:
    """Return the condition of a hit, for records and as a filter, and whether the latter is exact."""
    for put in puts:
        if put.kind == "condition":
            check = fetches.number(put.value, wanted.when)
            filtered = filters.text(put.value, fetches, lambda place: f"a{place - FIRST_FIELD}")
            return check, filtered, fetches.always_readable(put.value)
    return None, "", False


def _arguments(
    puts: Sequence[Put], fetches: Fetches, shapes: Sequence[Shape], texts: Sequence[str]
) -> tuple[tuple[str, int | Computation], ...]:
    """Return where the values of the expressions are, or how to compute them."""
    found = {put.index: put for put in puts if put.kind != "condition"}
    arguments: list[tuple[str, int | Computation]] = []
    for number, text in enumerate(texts):
        put = found.get(number)
        if put is None:
            arguments.append((text, _nothing))
            continue
        place = fetches.plain(put, shapes[number])
        arguments.append((text, fetches.argument(put, shapes[number], text) if place is None else place))
    return tuple(arguments)


def _nothing(_record: Record) -> Argument:
    """Return the value of an expression that has none at this place."""
    return None
