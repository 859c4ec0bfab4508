"""Names addresses of a kernel: the function, the inlined ones around it, and the line of the source."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from vmdebug.trace.expressions.dwarf import Unit
from vmdebug.trace.expressions.kernel import Kernel
from vmdebug.trace.expressions.syntax import NotCompiledError
from vmdebug.trace.hit import Call


class Places:
    """Names addresses; each address costs some time once.

    Args:
        kernel: The vmlinux.
        slide: How far KASLR has moved it.
    """

    def __init__(self, kernel: Kernel, slide: int) -> None:
        self._kernel = kernel
        self._slide = slide
        self.calls = functools.cache(self._calls)
        """Return the frames at an address: those of inlined functions first. Its arguments are the address,
        and how far before it the executed instruction is."""

    def _calls(self, pc: int, before: int) -> tuple[Call, ...]:
        linked = pc - self._slide
        try:
            unit = self._kernel.unit_at(linked - before)
        except NotCompiledError:
            return (Call(self._kernel.symbol_at(linked - before), pc),)
        around = unit.functions_around(linked - before)
        if not around:
            return (Call(self._kernel.symbol_at(linked - before), pc, *unit.lines.at(linked - before)),)
        return tuple(self._frames(unit, around, linked - before, pc))

    def _frames(self, unit: Unit, around: list[tuple[str, Any]], linked: int, pc: int) -> Iterator[Call]:
        file, line = unit.lines.at(linked)
        for name, entry in around:
            yield Call(name, pc, file, line)
            file, line = unit.called_from(entry)
