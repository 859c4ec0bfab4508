"""Decodes the records of an event into tuples: the CPU, the pid and the event's fields."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from vmdebug.errors import VmError
from vmdebug.trace.guest.fetches import Record
from vmdebug.trace.guest.formats import Format, Place

Read = Callable[[int, bytes, int], Record]
"""Returns the record of a CPU that begins at an offset of a page."""

_NUMBERS = {
    (1, 0): "B",
    (1, 1): "b",
    (2, 0): "H",
    (2, 1): "h",
    (4, 0): "I",
    (4, 1): "i",
    (8, 0): "Q",
    (8, 1): "q",
}
"""Letters of `struct`, by size and sign."""

_PID = "common_pid"


def reader(event: Format, names: Sequence[str]) -> Read:
    """Return the function that reads a record of an event.

    Args:
        event: The event's format.
        names: The fields to read, in this order.

    Raises:
        VmError: the event has no such field.
    """
    missing = [each for each in names if each not in event.places]
    if missing:
        raise VmError(f"the event has no field {missing[0]}; it has {', '.join(event.places)}")
    places = [event.places[each] for each in (_PID, *names)]
    order = sorted(range(len(places)), key=lambda each: places[each].offset)
    form, at = "<", 0
    for index in order:
        place = places[index]
        form += f"{place.offset - at}x{_letter(place)}"
        at = place.offset + place.size
    unpack = struct.Struct(form).unpack_from
    turned = [order.index(each) for each in range(len(places))]
    dynamic = [(n + 1, place) for n, place in enumerate(places) if place.dynamic]
    in_order = turned == sorted(turned)
    if in_order and not dynamic:
        return lambda cpu, page, at: (cpu, *unpack(page, at))

    def read(cpu: int, page: bytes, at: int) -> Record:
        found = unpack(page, at)
        record = [cpu, *found] if in_order else [cpu, *(found[each] for each in turned)]
        for number, place in dynamic:
            word = record[number]
            begin = at + (word & 0xFFFF) + (place.offset + place.size if place.dynamic == "__rel_loc" else 0)
            record[number] = page[begin : begin + (word >> 16)]
        return record

    return read


def _letter(place: Place) -> str:
    if place.dynamic:
        return "I"
    return (not place.array and _NUMBERS.get((place.size, int(place.signed)))) or f"{place.size}s"
