"""Tells GDB where the kernel's sources are."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import gdb
import vmd_batch
import vmd_guest
import vmd_slide
import vmd_source_paths


class Source(gdb.Command):
    """Show source lines from DIRECTORY: vmd-source DIRECTORY.

    DIRECTORY is the kernel's source tree, or the directory that relative file names in its
    debug information start from. Changes nothing if GDB finds the sources by itself.

    Example: vmd-source /src/linux-6.1
    """

    NAME = "vmd-source"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_FILES, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Compare a recorded file name with the files in the directory."""
        directory = Path(argument).absolute()
        file = _known()
        if file is None or Path(file.fullname()).is_file():
            return
        found = vmd_source_paths.rule(file.filename, directory)
        if found is None:
            vmd_batch.say(f"no sources: {directory} does not have {file.filename}")
            return
        prefix, top = found
        if prefix:
            gdb.execute(f"set substitute-path {shlex.quote(prefix)} {shlex.quote(str(top))}")
        gdb.execute(f"directory {shlex.quote(str(top))}", to_string=True)


def _known() -> gdb.Symtab | None:
    """Return a source file that every kernel has; None if the vmlinux tells none.

    By its address GDB finds the file of the first instruction without looking up a name, for which it would
    sort its index.
    """
    with contextlib.suppress(gdb.GdbError):  # no vmlinux, or not an ELF file that this code reads
        text = vmd_guest.vmlinux_sections().get(".text")
        first = None if text is None else gdb.find_pc_line(text.address + vmd_slide.applied()).symtab
        if first is not None and vmd_source_paths.FIRST.search(first.filename):
            return first
    symbol = next(filter(None, map(gdb.lookup_global_symbol, vmd_source_paths.KNOWN)), None)
    return None if symbol is None else symbol.symtab
