"""Where code and variables are, according to their DWARF entries; DWARF 5, 2.5, 2.6 and 2.17."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from vmdebug.trace.expressions import types

_OPERATION = re.compile(
    r"DW_OP_(?P<kind>addr|fbreg|call_frame_cfa|breg|reg|lit|const)(?P<number>\d*)[us]?(?<![a-z][us])"
)
"""The operations of a variable that is in one place: `reg5`, `breg7`, `const1u`; DWARF 5, 7.7.1."""


class Location(msgspec.Struct, frozen=True):
    """Where a variable is at an instruction.

    Args:
        register: The number of the register that holds it, or that `offset` is relative to.
        offset: An address, or an offset from the register or the frame; None if the register holds it.
        frame: Whether the offset is relative to the canonical frame address.
        constant: Its value, if it is a constant without a location.
    """

    register: int | None = None
    offset: int | None = None
    frame: bool = False
    constant: int | None = None


def of_variable(dwarf: Any, cu: Any, variable: Any, address: int) -> Location | None:
    """Return where a variable is at an instruction; None if it has no location there, or several."""
    constant = types.number(variable, "DW_AT_const_value")
    if constant is not None:
        return Location(constant=constant)
    attribute = variable.attributes.get("DW_AT_location")
    if attribute is None:
        return None
    for expression in _expressions(dwarf, cu, attribute, address):
        return _decoded(cu, expression)
    return None


def _expressions(dwarf: Any, cu: Any, attribute: Any, address: int) -> Iterator[list[int]]:
    if attribute.form in ("DW_FORM_exprloc", "DW_FORM_block1", "DW_FORM_block"):
        yield list(attribute.value)
        return
    base = _base(cu)
    for each in dwarf.location_lists().get_location_list_at_offset(attribute.value, die=cu.get_top_DIE()):
        if hasattr(each, "base_address"):
            base = each.base_address
        elif hasattr(each, "loc_expr"):
            add = 0 if getattr(each, "is_absolute", False) else base
            if each.begin_offset + add <= address < each.end_offset + add:
                yield list(each.loc_expr)


def _decoded(cu: Any, expression: list[int]) -> Location | None:
    from elftools.dwarf.dwarf_expr import DWARFExprParser  # noqa: PLC0415 - slow to import

    ops = DWARFExprParser(cu.structs).parse_expr(expression)
    names = [op.op_name for op in ops]
    match = _OPERATION.fullmatch(names[0]) if names else None
    if match is None or (names[1:] and names[1:] != ["DW_OP_stack_value"]):
        return None
    kind, number = match["kind"], int(match["number"] or 0)
    (argument,) = ops[0].args or (number,)
    if names[1:]:
        return Location(constant=argument) if kind in ("lit", "const") else None
    places = {
        "addr": Location(offset=argument),
        "fbreg": Location(offset=argument, frame=True),
        "call_frame_cfa": Location(offset=0, frame=True),
        "breg": Location(register=number, offset=argument),
        "reg": Location(register=number),
    }
    return places.get(kind)


def ranges(dwarf: Any, cu: Any, entry: Any) -> list[tuple[int, int]]:
    """Return the code of a function or block, its first part first."""
    low, high = entry.attributes.get("DW_AT_low_pc"), entry.attributes.get("DW_AT_high_pc")
    if low is not None and high is not None:
        return [(low.value, high.value if high.form == "DW_FORM_addr" else low.value + high.value)]
    offset = entry.attributes.get("DW_AT_ranges")
    if offset is None:
        return []
    lists = dwarf.range_lists()
    found, base = [], _base(cu)
    for each in lists.get_range_list_at_offset(offset.value, cu=cu):
        if hasattr(each, "base_address"):
            base = each.base_address
        elif each.begin_offset != each.end_offset:
            add = 0 if getattr(each, "is_absolute", False) else base
            found.append((each.begin_offset + add, each.end_offset + add))
    return found


def _base(cu: Any) -> int:
    low = cu.get_top_DIE().attributes.get("DW_AT_low_pc")
    return int(low.value) if low is not None else 0


def entry_pc(entry: Any, ranges: list[tuple[int, int]]) -> int:
    """Return the first instruction of an inlined function."""
    found = entry.attributes.get("DW_AT_entry_pc")
    if found is None:
        return low(entry, ranges)
    return int(found.value if found.form == "DW_FORM_addr" else low(entry, ranges) + found.value)


def low(entry: Any, ranges: list[tuple[int, int]]) -> int:
    """Return the lowest address of a function or block, or the start of its first part."""
    found = entry.attributes.get("DW_AT_low_pc")
    return int(found.value) if found is not None else ranges[0][0]
