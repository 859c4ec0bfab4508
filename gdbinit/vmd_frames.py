"""How backtraces are printed: they end at the kernel's entry, and files are named from the top of the tree.

Functions of modules without debugging information are shown as the kernel does: "brd_init+0x12 [brd]".

A frame filter; see "Filtering Frames" in GDB's manual. `vmd_exceptions` gives the frame of user space the PC
0, at which GDB stops, but GDB still shows that frame, and then reports a corrupt stack. `backtrace
-no-filters` shows what GDB has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gdb
import vmd_bare_modules
import vmd_user_frames
from gdb.FrameDecorator import FrameDecorator

_AT_TOP = "/init/main.c"
"""The file of `start_kernel`, from the top of the tree."""


class _Tree:
    """Where the compiler found the kernel's sources, as DWARF has it: with a slash at its end."""

    def __init__(self) -> None:
        self._top: str | None = None

    def forget(self, _event: object = None) -> None:
        """Forget it: other symbols were loaded."""
        self._top = None

    def top(self) -> str:
        """Return it; "" if unknown, or if the names are relative already."""
        if self._top is None:
            self._top = ""
            symbol = gdb.lookup_global_symbol("start_kernel")
            if symbol is not None and symbol.symtab is not None and symbol.symtab.filename.endswith(_AT_TOP):
                self._top = symbol.symtab.filename.removesuffix(_AT_TOP) + "/"
        return self._top


TREE = _Tree()


def relative(file: str) -> str:
    """Return the name of a source file from the top of the kernel's tree, if it is in it."""
    top = TREE.top()
    return file.removeprefix(top).removeprefix("./") if top else file.removeprefix("./")


class _Frame(FrameDecorator):
    """A frame whose file is named from the top of the tree, and without debugging information its module."""

    def function(self) -> str | None:
        """Return the name of its function."""
        return vmd_bare_modules.described(self.inferior_frame()) or super().function()

    def filename(self) -> str | None:
        """Return the name of its file."""
        name = super().filename()
        return relative(name) if isinstance(name, str) else name


class _UserSpace(FrameDecorator):
    """The frame between the kernel and the program that has called it."""

    def function(self) -> str:
        """Return its name."""
        return vmd_user_frames.USER.called()

    def address(self) -> int | None:
        """Return no address: it has no code."""
        return None


class Frames:
    """The filter."""

    def __init__(self) -> None:
        self.name = "vmd-frames"
        self.enabled = True
        self.priority = 10

    def filter(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yield the frames up to the one with PC 0, which is not the innermost."""
        for number, frame in enumerate(iterator):
            pc = frame.inferior_frame().pc()
            if number and not pc:
                return
            yield _UserSpace(frame) if pc == vmd_user_frames.BRIDGE else _Frame(frame)


def register() -> None:
    """Register the filter."""
    found = Frames()
    gdb.frame_filters[found.name] = found
    gdb.events.new_objfile.connect(TREE.forget)
    gdb.events.clear_objfiles.connect(TREE.forget)
