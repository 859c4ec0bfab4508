"""The arguments and the local variables of a frame, by name.

See "Symbols In Python" and "Blocks In Python" in GDB's manual.
"""

from __future__ import annotations

from collections.abc import Iterator

import gdb


def named(kind: str, frame: gdb.Frame) -> dict[str, gdb.Symbol]:
    """Return a frame's variables of one kind; an inner block's variable hides an outer one of the same name.

    Args:
        kind: "argument" or "local".
        frame: The frame. Without debug information it has no variables.
    """
    found: dict[str, gdb.Symbol] = {}
    for block in _blocks(frame):
        for symbol in block:
            wanted = symbol.is_argument if kind == "argument" else symbol.is_variable
            if wanted and symbol.name:
                found.setdefault(symbol.name, symbol)
    return found


def _blocks(frame: gdb.Frame) -> Iterator[gdb.Block]:
    """Return the blocks around the frame's PC, from the innermost one to the function's own."""
    try:
        block: gdb.Block | None = frame.block()
    except RuntimeError:
        return  # "Cannot locate block for frame."
    while block is not None:
        yield block
        if block.function is not None:
            return
        block = block.superblock
