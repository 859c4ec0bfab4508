"""The symbols of the kernel's modules: loaded on request, or before a module's init function runs."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from vmdebug.deadline import Deadline
from vmdebug.debugger import breakpoint as mi_breakpoint
from vmdebug.debugger import mi
from vmdebug.debugger.breakpoint import BreakpointOwner
from vmdebug.debugger.breakpoint_table import BreakpointTable, Entry
from vmdebug.debugger.connection import Connection
from vmdebug.debugger.runstate import State
from vmdebug.debugger.stop import Stop
from vmdebug.errors import GdbError

LOAD_SECONDS = 120.0
"""How long GDB may take to load the symbols of a kernel or of its modules: about a second for 100 MB."""

_INIT = "do_init_module"
"""The function in kernel/module that calls a module's init function; its symbols are loaded there."""


class ModuleSymbols:
    """Loads the symbols of modules.

    Args:
        connection: The connection to GDB.
        table: The table for its own breakpoint.
        note: Called for each module without symbols.
    """

    def __init__(self, connection: Connection, table: BreakpointTable, note: Callable[[str], None]) -> None:
        self._connection = connection
        self._table = table
        self._note = note
        self._files: tuple[Path, ...] = ()
        self._loaded = False
        self._following = False
        self._breakpoint = 0

    def use(self, files: tuple[Path, ...]) -> None:
        """Search these directories, and take these files; without any, search GDB's default directories."""
        self._files = files

    @property
    def own_breakpoint(self) -> int:
        """The number of its own breakpoint; 0 if it has none."""
        return self._breakpoint

    def load(self, directory: str | os.PathLike[str] | None = None, *, timeout: float = LOAD_SECONDS) -> None:
        """Load the symbols of the modules that are loaded now; `Gdb.notes` lists those without symbols.

        A `pending` breakpoint loads a module's symbols automatically, before the module's init function runs.

        Args:
            directory: Directory to search first, now and later. The other directories are those of the
                guest's kernel, of vmlinux, and /lib/modules.
            timeout: Seconds.

        Raises:
            StateError: the guest runs.
            GdbError: there is no such directory.
            DeadlineError: GDB did not load them in time.
        """
        self._connection.need("load_modules", State.STOPPED)
        deadline = Deadline.after(timeout)
        commands = ["python import vmd_modules; vmd_modules.Modules()"]
        if self._files:
            commands.append(f"set $vmd_modules_path = {mi.quote(':'.join(map(str, self._files)))}")
        where = "" if directory is None else f" {shlex.quote(os.fspath(directory))}"
        for command in (*commands, f"vmd-modules{where}"):
            said = self._connection.execute(f"-interpreter-exec console {mi.quote(command)}", deadline)
            for line in said.log.splitlines():
                if "no symbols" in line:
                    self._note(line)
        self._loaded = "no module is loaded" not in said.console

    def follow(self, owner: BreakpointOwner, *, pending: bool) -> None:
        """If a breakpoint may need it, load each module's symbols before its init function runs.

        Args:
            owner: Deletes the breakpoint that this sets.
            pending: Whether a breakpoint is pending. Other breakpoints may be in a module that will be loaded
                again, at another address.
        """
        if self._following or not (pending or self._loaded):
            return
        self._following = True
        with contextlib.suppress(GdbError):  # the kernel has no modules
            answer = self._connection.fetch(mi_breakpoint.insert(_INIT))
            made = mi_breakpoint.made(answer, _INIT, owner)
            self._table.add(Entry(made, self._starts))
            self._breakpoint = made.number

    def _starts(self, _where: Stop) -> None:
        self.load()
