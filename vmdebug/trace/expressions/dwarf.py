"""Reads DWARF: a compilation unit, its functions and variables, and where these are."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from vmdebug.trace.expressions import locations, types
from vmdebug.trace.expressions.lines import Lines
from vmdebug.trace.expressions.locations import Location
from vmdebug.trace.expressions.syntax import NotCompiledError, TypeName
from vmdebug.trace.expressions.types import Type

_FUNCTIONS = ("DW_TAG_subprogram", "DW_TAG_inlined_subroutine")
_VARIABLES = ("DW_TAG_formal_parameter", "DW_TAG_variable")
_CALL_SITES = ("DW_TAG_call_site", "DW_TAG_GNU_call_site")
_TAIL_CALL = ("DW_AT_call_tail_call", "DW_AT_GNU_tail_call")
_CALL_ORIGIN = ("DW_AT_call_origin", "DW_AT_abstract_origin")
"""Calls in DWARF 5, and in GCC's extension of DWARF 4."""

_TAIL_CALLS = 16
"""How many functions are searched for jumps to others: each may need another compilation unit."""

_COLD = ".cold"
"""The suffix of the part of a function that GCC moves away, because it seldom runs."""

_BLOCKS = ("DW_TAG_lexical_block", "DW_TAG_inlined_subroutine")


class Symbols(Protocol):
    """The symbols of the kernel that a unit belongs to."""

    def addresses(self, symbol: str) -> tuple[int, ...]:
        """Return the linked addresses of a symbol."""

    def sized(self, symbol: str) -> tuple[tuple[int, int], ...]:
        """Return the linked addresses and the sizes of a symbol."""

    def unit_at(self, address: int) -> Unit:
        """Return the compilation unit of an instruction; raises NotCompiledError."""


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """A place of the kernel's code.

    Args:
        unit: Its compilation unit.
        address: Its linked address.
        entry: Whether it is the first instruction of a function; only there is the frame's address known.
        function: The DWARF entry of the function, or of this inlined copy of it.
        blocks: The DWARF entries whose variables are in scope there, innermost first.
        ranges: The function's linked code, if it is not inlined.
    """

    unit: Unit
    address: int
    entry: bool
    function: Any
    blocks: tuple[Any, ...]
    ranges: tuple[tuple[int, int], ...]

    @property
    def result(self) -> Type:
        """The type of the function's return value."""
        return types.of_attribute(_origin(self.function))

    @property
    def tail_calls(self) -> tuple[tuple[int, int], ...]:
        """The linked code of the functions that the function ends with a jump to, and of those that they do.

        What they return is what the function returns. DWARF does not name the targets of indirect jumps.
        """
        found: dict[tuple[int, int], None] = {}
        rest = [(self.unit, self.function)]
        seen = 0
        while rest and seen < _TAIL_CALLS:
            seen += 1
            unit, function = rest.pop()
            for at, code in unit.tail_calls(function):
                if any(each not in found for each in code):
                    found |= dict.fromkeys(code)
                    with contextlib.suppress(NotCompiledError):
                        target = self.unit.kernel.unit_at(at)
                        rest += [(target, each) for each in target.functions_at(at)]
        return tuple(found)

    def variable(self, name: str) -> Any | None:
        """Return the entry of a local variable or parameter; None if there is none."""
        for block in self.blocks:
            for child in block.iter_children():
                if child.tag in _VARIABLES and types.text(_origin(child)) == name:
                    return child
        return None

    def readable(self, registers: int) -> Iterator[tuple[str, Type]]:
        """Yield the local variables that are in memory or in one of so many registers, innermost first."""
        for block in self.blocks:
            for child in block.iter_children():
                name = types.text(_origin(child)) if child.tag in _VARIABLES else ""
                place = self.unit.location(child, self.address) if name else None
                if place is None or (place.frame and not self.entry) or (place.register or 0) >= registers:
                    continue
                yield name, type_of(child)

    def variables(self) -> list[str]:
        """Return the names of the function's parameters."""
        named = (
            types.text(_origin(each)) for each in self.function.iter_children() if each.tag in _VARIABLES
        )
        return [each for each in named if each]


class Unit:
    """A compilation unit.

    Args:
        kernel: Its symbols.
        cu: pyelftools' unit.
        dwarf: pyelftools' DWARF.
    """

    def __init__(self, kernel: Symbols, cu: Any, dwarf: Any) -> None:
        self.kernel = kernel
        self._cu = cu
        self._dwarf = dwarf

    @functools.cached_property
    def entries(self) -> list[Any]:
        """The entries at the top of the unit."""
        return list(self._cu.get_top_DIE().iter_children())

    @functools.cached_property
    def typedefs(self) -> dict[str, Any]:
        """The typedefs by name."""
        return {types.text(each): each for each in self.entries if each.tag == "DW_TAG_typedef"}

    def scopes(self, function: str) -> Iterator[Scope]:
        """Yield the places where a function of this unit begins: its own code, and its inlined copies."""
        for entry in self.entries:
            if entry.tag != "DW_TAG_subprogram":
                continue
            ranges = self._ranges(entry)
            if ranges and types.text(_origin(entry)) == function:
                low = locations.low(entry, ranges)
                yield Scope(
                    unit=self, address=low, entry=True, function=entry, blocks=(entry,), ranges=tuple(ranges)
                )
            if ranges:
                yield from self._inlined(entry, function, (entry,))

    @functools.cached_property
    def lines(self) -> Lines:
        """The line table."""
        return Lines(self._cu, self._dwarf)

    def functions_around(self, address: int) -> list[tuple[str, Any]]:
        """Return the names and entries of the functions at an address: inlined ones, innermost first."""
        found: list[tuple[str, Any]] = []
        inside: list[Any] = [each for each in self.entries if each.tag == "DW_TAG_subprogram"]
        while inside:
            entry = next((each for each in inside if self._has(each, address)), None)
            if entry is None:
                break
            if entry.tag in _FUNCTIONS:
                found.insert(0, (types.text(_origin(entry)), entry))
            inside = [each for each in entry.iter_children() if each.tag in _BLOCKS]
        return found

    def _has(self, entry: Any, address: int) -> bool:
        return any(low <= address < high for low, high in self._ranges(entry))

    def called_from(self, entry: Any) -> tuple[str, int]:
        """Return the file and the line from which an inlined function is called; "" and 0 if unknown."""
        file = types.number(entry, "DW_AT_call_file")
        return self.lines.file(file) if file is not None else "", types.number(entry, "DW_AT_call_line") or 0

    @property
    def name(self) -> str:
        """The path of its source, as the compiler was given it."""
        return types.text(self._cu.get_top_DIE())

    def scope_at(self, address: int) -> Scope:
        """Return the scope of an instruction: the innermost function there, inlined or not.

        Raises:
            NotCompiledError: there is no function.
        """
        blocks: list[Any] = []
        function = None
        inside: list[Any] = [each for each in self.entries if each.tag == "DW_TAG_subprogram"]
        while (entry := next((each for each in inside if self._has(each, address)), None)) is not None:
            if entry.tag in _FUNCTIONS:
                function, blocks = entry, []
            blocks.insert(0, entry)
            inside = [each for each in entry.iter_children() if each.tag in _BLOCKS]
        if function is None:
            raise NotCompiledError(f"the DWARF has no function at {address:#x}")
        return Scope(
            unit=self, address=address, entry=False, function=function, blocks=tuple(blocks), ranges=()
        )

    def declared(self, function: Any) -> tuple[str, int]:
        """Return the file and the line at which a function begins; "" and 0 if unknown."""
        origin = _origin(function)
        file, line = (types.number(origin, f"DW_AT_decl_{each}") for each in ("file", "line"))
        return (self.lines.file(file), line) if file is not None and line else ("", 0)

    def functions_at(self, address: int) -> list[Any]:
        """Return the entries of the functions that begin at an address: one, or none."""
        return [
            each
            for each in self.entries
            if each.tag == "DW_TAG_subprogram"
            and (code := self._ranges(each))
            and locations.low(each, code) == address
        ]

    def tail_calls(self, function: Any) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Yield the address and code of each function that a function ends with a jump to; DWARF 5, 3.4."""
        for child in function.iter_children():
            if child.tag in _CALL_SITES and not set(_TAIL_CALL).isdisjoint(child.attributes):
                for name in _CALL_ORIGIN:
                    if name in child.attributes:
                        yield from self._code(child.get_DIE_from_attribute(name))
            elif child.tag in _BLOCKS:
                yield from self.tail_calls(child)

    def calls(self, function: Any) -> Iterator[str]:
        """Yield the names of the functions that a function calls, or ends with a jump to, by name."""
        for child in function.iter_children():
            if child.tag in _CALL_SITES:
                origins = (each for each in _CALL_ORIGIN if each in child.attributes)
                yield from (types.text(_origin(child.get_DIE_from_attribute(each))) for each in origins)
            elif child.tag in _BLOCKS:
                yield from self.calls(child)

    def _code(self, function: Any) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        ranges = self._ranges(function)
        if ranges:
            yield locations.low(function, ranges), ranges
            return
        name = types.text(_origin(function))
        cold = [
            each for address, size in self.kernel.sized(name + _COLD) for each in [(address, address + size)]
        ]
        for address, size in self.kernel.sized(name):
            yield address, [(address, address + size), *cold]

    def _inlined(self, entry: Any, function: str, outside: tuple[Any, ...]) -> Iterator[Scope]:
        for child in entry.iter_children():
            if child.tag not in _BLOCKS or not (ranges := self._ranges(child)):
                continue
            inline = child.tag == "DW_TAG_inlined_subroutine"
            blocks = (child,) if inline else (child, *outside)
            if inline and types.text(_origin(child)) == function:
                at = locations.entry_pc(child, ranges)
                yield Scope(unit=self, address=at, entry=False, function=child, blocks=blocks, ranges=())
            yield from self._inlined(child, function, blocks)

    def code(self, function: Any) -> tuple[tuple[int, int], ...]:
        """Return the linked code of a function."""
        return tuple(self._ranges(function))

    def _ranges(self, entry: Any) -> list[tuple[int, int]]:
        return locations.ranges(self._dwarf, self._cu, entry)

    def location(self, variable: Any, address: int) -> Location | None:
        """Return where a variable is at an instruction; None if it has no location there, or several."""
        return locations.of_variable(self._dwarf, self._cu, variable, address)

    def type_named(self, name: TypeName) -> Type:
        """Return the type that a cast, sizeof or container_of names.

        Raises:
            NotCompiledError: this unit does not have it.
        """
        found = self._bare_type(name.words)
        for _ in range(name.pointers):
            found = found.pointer()
        return found

    def _bare_type(self, words: tuple[str, ...]) -> Type:
        basic = types.BASIC.get(frozenset(words))
        if basic is not None:
            return basic
        tag, name = words if len(words) == 2 else ("", words[0])  # noqa: PLR2004 - struct NAME
        if not tag and name in self.typedefs:
            return types.of(self.typedefs[name])
        wanted = {"struct": "structure", "union": "union", "enum": "enumeration"}.get(tag)
        for entry in self.entries if wanted else ():
            if entry.tag == f"DW_TAG_{wanted}_type" and types.text(entry) == name and _defined(entry):
                return types.of(entry)
        raise NotCompiledError(f"the file of the place does not define {' '.join(words)}")

    def complete(self, kind: Type) -> Type:
        """Return a struct with its members, which another part of the unit may define.

        Raises:
            NotCompiledError: this unit only declares it.
        """
        if kind.kind != "struct" or kind.die is None or _defined(kind.die):
            return kind
        tag = "union" if kind.die.tag == "DW_TAG_union_type" else "struct"
        return self._bare_type((tag, types.text(kind.die)))

    def enumerator(self, name: str) -> tuple[Type, int] | None:
        """Return an enumerator's type and value; None if this unit has none of that name."""
        for entry in self.entries:
            if entry.tag == "DW_TAG_enumeration_type":
                kind = types.of(entry)
                value = kind.enumerators().get(name)
                if value is not None:
                    return kind, value
        return None

    def variable(self, name: str) -> tuple[Any, int] | None:
        """Return the entry and the linked address of a global variable; None if there is none."""
        for entry in self.entries:
            if entry.tag == "DW_TAG_variable" and types.text(_origin(entry)) == name:
                place = self.location(entry, 0)
                if place is not None and place.offset is not None and place.register is None:
                    return entry, place.offset
                addresses = self.kernel.addresses(name)
                if len(addresses) == 1:
                    return entry, addresses[0]
        return None


def _defined(entry: Any) -> bool:
    return "DW_AT_declaration" not in entry.attributes


def _origin(entry: Any) -> Any:
    """Return the entry with the name and the type: that of the abstract function, or of the declaration."""
    for name in ("DW_AT_abstract_origin", "DW_AT_specification"):
        if name in entry.attributes and "DW_AT_name" not in entry.attributes:
            return _origin(entry.get_DIE_from_attribute(name))
    return entry


def type_of(variable: Any) -> Type:
    """Return the type of a variable."""
    return types.of_attribute(variable if "DW_AT_type" in variable.attributes else _origin(variable))
