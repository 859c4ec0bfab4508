"""C types, read from DWARF when they are needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

Kind = Literal["int", "bool", "char", "float", "pointer", "struct", "array", "enum", "function", "void"]

_TAGS: dict[str, Kind] = {
    "DW_TAG_pointer_type": "pointer",
    "DW_TAG_structure_type": "struct",
    "DW_TAG_union_type": "struct",
    "DW_TAG_class_type": "struct",
    "DW_TAG_array_type": "array",
    "DW_TAG_enumeration_type": "enum",
    "DW_TAG_subroutine_type": "function",
    "DW_TAG_subprogram": "function",
}

_TRANSPARENT = frozenset(
    f"DW_TAG_{each}"
    for each in ("typedef", "const_type", "volatile_type", "restrict_type", "atomic_type", "shared_type")
)

_BOOL, _FLOAT = 0x02, 0x04
_SIGNED, _SIGNED_CHAR, _UNSIGNED_CHAR, _UTF = 0x05, 0x06, 0x08, 0x10
"""DW_ATE_… of DWARF 5, 7.8."""


class Type:
    """A type without typedefs and qualifiers.

    Args:
        kind: What it is.
        size: Its size in bytes; 0 if the unit only declares it.
        signed: Whether it is a signed number.
        name: Its name, for messages.
        die: Its entry in DWARF; None for types that an expression makes.
        target: What a pointer points to, or the type of an array's elements.
    """

    def __init__(
        self,
        kind: Kind,
        size: int,
        *,
        signed: bool = False,
        name: str = "",
        die: Any = None,
        target: Callable[[], Type] | None = None,
    ) -> None:
        self.kind = kind
        self.size = size
        self.signed = signed
        self.name = name
        self.die = die
        self._target = target

    @functools.cached_property
    def target(self) -> Type:
        """What a pointer points to, or the type of an array's elements."""
        return VOID if self._target is None else self._target()

    @property
    def is_number(self) -> bool:
        """Whether its values fit into a register."""
        return self.kind in ("int", "bool", "char", "enum", "pointer")

    @property
    def is_char(self) -> bool:
        """Whether it is a character."""
        return self.kind == "char"

    def pointer(self) -> Type:
        """Return a pointer to it."""
        return Type("pointer", 8, name=f"{self.name} *", target=lambda: self)

    def member(self, name: str) -> tuple[Member, int] | None:
        """Return a member and its byte offset, also one of an unnamed struct in it; None if there is none."""
        for each in self.members():
            if each.name == name:
                return each, each.offset
            inside = each.type.member(name) if not each.name and each.type.kind == "struct" else None
            if inside is not None:
                return inside[0], each.offset + inside[1]
        return None

    def members(self) -> Iterator[Member]:
        """Yield the members of a struct or a union."""
        for child in self.die.iter_children() if self.die is not None else ():
            if child.tag == "DW_TAG_member":
                yield Member(child)

    @property
    def length(self) -> int | None:
        """The number of an array's elements; None if it is not known."""
        sizes = [each for each in self.die.iter_children() if each.tag == "DW_TAG_subrange_type"]
        if len(sizes) != 1:
            return None
        count = number(sizes[0], "DW_AT_count")
        bound = number(sizes[0], "DW_AT_upper_bound")
        return count if count is not None else None if bound is None else bound + 1

    def enumerators(self) -> dict[str, int]:
        """Return the names and values of an enumeration."""
        return {
            text(child): number(child, "DW_AT_const_value") or 0
            for child in self.die.iter_children()
            if child.tag == "DW_TAG_enumerator"
        }


class Member:
    """A member of a struct.

    Args:
        die: Its entry in DWARF.
    """

    def __init__(self, die: Any) -> None:
        self.name = text(die)
        self._die = die
        bits = number(die, "DW_AT_bit_size")
        at = number(die, "DW_AT_data_bit_offset")
        old = number(die, "DW_AT_bit_offset")
        start = number(die, "DW_AT_data_member_location") or 0
        if bits is not None and at is None and old is not None:
            # DWARF 2 and 3 count the bits from the most significant one of the storage unit.
            size = number(die, "DW_AT_byte_size") or self.type.size
            at = 8 * start + 8 * size - old - bits
        self.bits = bits
        """The size of a bit field in bits; None for other members."""
        self.offset = start if at is None else at // 8
        """Where it begins, in bytes."""
        self.shift = 0 if at is None else at % 8
        """The bit of the byte there in which a bit field begins."""

    @functools.cached_property
    def type(self) -> Type:
        """Its type."""
        return of_attribute(self._die)


VOID = Type("void", 0, name="void")
CHAR = Type("char", 1, signed=True, name="char")
INT = Type("int", 4, signed=True, name="int")
UNSIGNED = Type("int", 4, name="unsigned int")
LONG = Type("int", 8, signed=True, name="long")
UNSIGNED_LONG = Type("int", 8, name="unsigned long")

BASIC: dict[frozenset[str], Type] = {
    frozenset(words.split()): kind
    for names, kind in (
        (("void",), VOID),
        (("char", "signed char"), CHAR),
        (("unsigned char",), Type("char", 1, name="unsigned char")),
        (("short", "short int", "signed short"), Type("int", 2, signed=True, name="short")),
        (("unsigned short", "unsigned short int"), Type("int", 2, name="unsigned short")),
        (("int", "signed", "signed int"), INT),
        (("unsigned", "unsigned int"), UNSIGNED),
        (("long", "long int", "signed long", "long long", "long long int"), LONG),
        (("unsigned long", "unsigned long int", "unsigned long long"), UNSIGNED_LONG),
        (("_Bool",), Type("bool", 1, name="_Bool")),
    )
    for words in names
}
"""The types that C names by several words. `long long` has the same set of words as `long`."""


def text(die: Any, name: str = "DW_AT_name") -> str:
    """Return an attribute that is a string; "" if there is none."""
    found = die.attributes.get(name)
    return found.value.decode(errors="replace") if found is not None else ""


def number(die: Any, name: str) -> int | None:
    """Return an attribute that is a number; None if there is none, or it is not a constant."""
    found = die.attributes.get(name)
    return found.value if found is not None and isinstance(found.value, int) else None


def of_attribute(die: Any) -> Type:
    """Return the type of a variable, member, function or typedef; void if it has none."""
    return of(die.get_DIE_from_attribute("DW_AT_type")) if "DW_AT_type" in die.attributes else VOID


def of(die: Any) -> Type:
    """Return the type of an entry, without its typedefs and qualifiers."""
    while die.tag in _TRANSPARENT:
        if "DW_AT_type" not in die.attributes:
            return VOID
        die = die.get_DIE_from_attribute("DW_AT_type")
    size = number(die, "DW_AT_byte_size") or 0
    name = text(die)
    if die.tag == "DW_TAG_base_type":
        encoding = number(die, "DW_AT_encoding")
        kind: Kind = "float" if encoding == _FLOAT else "bool" if encoding == _BOOL else "int"
        kind = "char" if encoding in (_SIGNED_CHAR, _UNSIGNED_CHAR) else kind
        return Type(kind, size, signed=encoding in (_SIGNED, _SIGNED_CHAR), name=name, die=die)
    kind = _TAGS.get(die.tag, "void")
    if kind == "enum":
        under = of_attribute(die)
        negative = any((each < 0) for each in Type("enum", size, die=die).enumerators().values())
        return Type(kind, size or under.size, signed=under.signed or negative, name=f"enum {name}", die=die)
    if kind == "struct":
        return Type(kind, size, name=f"struct {name}", die=die)
    return Type(kind, size or 8 * (kind == "pointer"), name=name, die=die, target=lambda: of_attribute(die))


def promoted(kind: Type) -> Type:
    """Return the type of a number in arithmetic: at least int; C11, 6.3.1.1."""
    if kind.kind == "pointer":
        return UNSIGNED_LONG
    return INT if kind.size < INT.size else _plain(kind)


def common(left: Type, right: Type) -> Type:
    """Return the type in which two numbers are combined; C11, 6.3.1.8."""
    one, other = promoted(left), promoted(right)
    if one.size != other.size:
        return one if one.size > other.size else other
    return one if not one.signed else other


def _plain(kind: Type) -> Type:
    """Return the integer type of an enumeration or a character type."""
    by_size = {(4, True): INT, (4, False): UNSIGNED, (8, True): LONG, (8, False): UNSIGNED_LONG}
    return by_size.get((kind.size, kind.signed), kind)
