"""Resolves the places of a trace that are patterns, or lines of a function."""

from __future__ import annotations

import contextlib
import fnmatch
import re

import msgspec

from vmdebug.errors import UsageError
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.probe import Probe, Wanted

MOST_MATCHES = 2000
"""The most functions that the patterns of a trace may match."""

_LINE = re.compile(r"(?P<function>\w+)\+(?P<lines>\d+)")
_PATTERN = re.compile(r"(?!\*)[\w*?\[\]!-]*[*?\[][\w*?\[\]!-]*")
"""A pattern cannot begin with `*`: `*expression` is an address."""
_PREFIXES = ("__pfx_", "__cfi_")
"""The names of padding before functions: no code runs there."""


def needs_resolving(wanted: Wanted) -> bool:
    """Return whether a trace has a pattern, or a line of a function."""
    places = [each.where for each in wanted.probes]
    return wanted.callees > 0 or any(_LINE.fullmatch(each) or _PATTERN.fullmatch(each) for each in places)


def resolved(wanted: Wanted, kernel: Kernel) -> Wanted:
    """Return a trace with functions in place of patterns (`vfs_*`), and FILE:LINE in place of FUNCTION+LINES.

    Raises:
        UsageError: a pattern matches no function, or too many; or there is no such function or line.
        NotCompiledError: the DWARF does not describe a function.
    """
    probes: dict[str, Probe] = {}
    matched: dict[str, None] = {}
    for probe in wanted.probes:
        if line := _LINE.fullmatch(probe.where):
            where = _line(kernel, line["function"], int(line["lines"]))
            probes[where] = Probe(where, probe.args)
        elif _PATTERN.fullmatch(probe.where):
            for name in matching(kernel, probe.where):
                if name not in probes:
                    matched[name] = None
                    probes[name] = Probe(name, probe.args)
        else:
            matched.pop(probe.where, None)
            probes[probe.where] = probe
    for name in _callees(kernel, list(probes), wanted.callees):
        if name not in probes:
            matched[name] = None
            probes[name] = Probe(name)
    if len(matched) > MOST_MATCHES:
        raise UsageError(
            f"the patterns match {len(matched)} functions; a trace can have {MOST_MATCHES}",
            hint="give narrower patterns",
        )
    return msgspec.structs.replace(wanted, probes=tuple(probes.values()), matched=tuple(matched))


def _callees(kernel: Kernel, functions: list[str], levels: int) -> list[str]:
    """Return the functions that functions call, and those that those call, as many levels as wanted."""
    found: dict[str, None] = {}
    level = functions
    for _ in range(levels):
        called = {each: None for name in level for each in _called(kernel, name)}
        level = [each for each in called if each not in found]
        found |= called
    return list(found)


def _called(kernel: Kernel, function: str) -> list[str]:
    found: list[str] = []
    for address in kernel.addresses(function) if function.isidentifier() else ():
        with contextlib.suppress(NotCompiledError):
            unit = kernel.unit_at(address)
            for entry in unit.functions_at(address):
                found += [each for each in unit.calls(entry) if kernel.addresses(each)]
    return found


def matching(kernel: Kernel, pattern: str) -> list[str]:
    """Return the names of the functions that a pattern matches, sorted.

    Raises:
        UsageError: it matches none.
    """
    find = re.compile(fnmatch.translate(pattern)).match
    found = {each.name for each in kernel.functions if "." not in each.name and find(each.name)}
    names = sorted(each for each in found if not each.startswith(_PREFIXES))
    if not names:
        raise UsageError(f"no function of the vmlinux matches {pattern}", hint="vmdebug trace --list PATTERN")
    return names


def _line(kernel: Kernel, function: str, lines: int) -> str:
    for address in kernel.addresses(function):
        unit = kernel.unit_at(address)
        for entry in unit.functions_at(address):
            file, first = unit.declared(entry)
            if first and unit.lines.places(first + lines, file):
                # GDB and the plugin find a file by the end of its path, wherever its directory is now.
                return f"{unit.name.lstrip('./')}:{first + lines}"
            if first:
                raise UsageError(
                    f"line {first + lines} of {file}, {lines} below the start of {function}, has no code",
                    hint=f"vmdebug trace --list {function} prints the lines",
                )
    raise UsageError(f"the vmlinux has no function {function}", hint="vmdebug trace --list PATTERN")
