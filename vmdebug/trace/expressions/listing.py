"""Lists the places of a kernel that can be traced, with the variables that can be read there."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from vmdebug.arch import Arch
from vmdebug.errors import UsageError
from vmdebug.trace.expressions import resolving
from vmdebug.trace.expressions.dwarf import Scope
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.expressions.types import Type

_TRACEPOINT = "__tracepoint_"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A place that can be traced.

    Args:
        kind: A function, a line of one, or a tracepoint.
        name: What to give to `vmdebug trace`: FUNCTION or FUNCTION+N; or the tracepoint's name.
        file: Path of its source; "" if unknown.
        line: The line in that file; 0 if unknown.
        values: The variables that can be read there, with their types.
    """

    kind: Literal["function", "line", "tracepoint"]
    name: str
    file: str = ""
    line: int = 0
    values: tuple[str, ...] = ()


def places(kernel: Kernel, pattern: str, row: Arch) -> Iterator[Place]:
    """Yield the functions and tracepoints that a pattern matches; the lines of a function that it names.

    Raises:
        UsageError: nothing matches.
    """
    if pattern.isidentifier():
        yield from _function(kernel, pattern, row, lines=True)
        return
    points = _tracepoints(kernel, pattern)
    try:
        names = resolving.matching(kernel, pattern)
    except UsageError:
        if not points:
            raise
        names = []
    for name in names:
        yield from _function(kernel, name, row, lines=False)
    for name in points:
        yield Place(kind="tracepoint", name=name)


def _tracepoints(kernel: Kernel, pattern: str) -> list[str]:
    find = re.compile(fnmatch.translate(pattern)).match
    names = (each.removeprefix(_TRACEPOINT) for each in kernel.symbols(_TRACEPOINT))
    return sorted({each for each in names if find(each)})


def _function(kernel: Kernel, name: str, row: Arch, *, lines: bool) -> Iterator[Place]:
    addresses = kernel.addresses(name)
    if not addresses:
        raise UsageError(f"the kernel has no function {name}", hint="give a pattern: 'vfs_*'")
    for address in addresses:
        try:
            unit = kernel.unit_at(address)
        except NotCompiledError:
            yield Place(kind="function", name=name)
            continue
        for entry in unit.functions_at(address):
            scope = Scope(
                unit=unit,
                address=address,
                entry=True,
                function=entry,
                blocks=(entry,),
                ranges=unit.code(entry),
            )
            file, first = unit.declared(entry)
            yield Place(kind="function", name=name, file=file, line=first, values=_values(scope, row))
            if lines:
                yield from _lines(scope, name, row)


def _lines(scope: Scope, name: str, row: Arch) -> Iterator[Place]:
    table = scope.unit.lines
    file, first = scope.unit.declared(scope.function)

    def inside(address: int) -> bool:
        return any(low <= address < high for low, high in scope.ranges)

    numbers = {
        each.line
        for each in table.rows
        if each.statement and inside(each.address) and each.line > first and table.file(each.file) == file
    }
    for number in sorted(numbers):
        addresses = [each for each in table.places(number, file) if inside(each)]
        if addresses:
            values = _values(scope.unit.scope_at(addresses[0]), row)
            yield Place(kind="line", name=f"{name}+{number - first}", file=file, line=number, values=values)


def _values(scope: Scope, row: Arch) -> tuple[str, ...]:
    """Return the variables that a trace can read, with their types."""
    found: dict[str, str] = {}
    for variable in scope.readable(len(row.dwarf_registers)):
        name, kind = variable
        found.setdefault(name, f"{name}: {_named(kind)}")
    return tuple(found.values())


def _named(kind: Type) -> str:
    if kind.kind == "pointer":
        return f"{_named(kind.target)} *"
    if kind.kind == "array":
        return f"{_named(kind.target)} []"
    return kind.name or kind.kind
