"""Tells GDB where the kernel's sources are."""

from __future__ import annotations

import shlex
from pathlib import Path

import gdb
import vmd_batch
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
        symbol = next(filter(None, map(gdb.lookup_global_symbol, vmd_source_paths.KNOWN)), None)
        if symbol is None or Path(symbol.symtab.fullname()).is_file():
            return
        found = vmd_source_paths.rule(symbol.symtab.filename, directory)
        if found is None:
            vmd_batch.say(f"no sources: {directory} does not have {symbol.symtab.filename}")
            return
        prefix, top = found
        if prefix:
            gdb.execute(f"set substitute-path {shlex.quote(prefix)} {shlex.quote(str(top))}")
        gdb.execute(f"directory {shlex.quote(str(top))}", to_string=True)
