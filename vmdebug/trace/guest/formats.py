"""Reads the format files of events in tracefs: the number of an event, and where its fields are."""

from __future__ import annotations

import re

import msgspec

from vmdebug.errors import VmError

_ID = re.compile(r"^ID: (\d+)$", re.MULTILINE)

_FIELD = re.compile(
    r"^\tfield:(?P<type>.+?)(?P<name>\w+)(?P<array>(?:\[\w*\])*);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);"
    r"(?:\s*signed:(?P<signed>\d);)?",
    re.MULTILINE,
)


class Place(msgspec.Struct, frozen=True):
    """A field of an event.

    Args:
        name: Its name.
        type: Its C type, as tracefs writes it: "unsigned long", "__data_loc char[]".
        offset: Where it begins in the event, in bytes.
        size: Its size in bytes.
        signed: Whether it is a signed number.
        array: Whether it has several elements.
    """

    name: str
    type: str
    offset: int
    size: int
    signed: bool
    array: bool

    @property
    def dynamic(self) -> str:
        """`__data_loc` or `__rel_loc` if the field says where its bytes are; "" if it is the bytes."""
        found = re.match(r"(__data_loc|__rel_loc) ", self.type)
        return found[1] if found else ""

    @property
    def is_text(self) -> bool:
        """Whether it is an array of characters."""
        return bool(re.search(r"\bchar\b", self.type)) and (self.array or bool(self.dynamic))


class Format(msgspec.Struct, frozen=True):
    """An event.

    Args:
        id: Its number, with which its records begin.
        places: Its fields, by name, in order.
    """

    id: int
    places: dict[str, Place]


def parse(text: str) -> Format:
    """Return the content of a format file.

    Raises:
        VmError: it is none.
    """
    number = _ID.search(text)
    found = {
        match["name"]: Place(
            name=match["name"],
            type=f"{match['type'].strip()}{match['array']}",
            offset=int(match["offset"]),
            size=int(match["size"]),
            signed=match["signed"] == "1",
            array=bool(match["array"]),
        )
        for match in _FIELD.finditer(text)
    }
    if number is None or "common_pid" not in found:
        raise VmError("the guest's tracefs describes an event in an unknown form", detail=text)
    return Format(int(number[1]), found)
