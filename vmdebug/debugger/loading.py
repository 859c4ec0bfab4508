"""Prepares a new GDB: settings, the commands of `gdbinit/`, and the symbols and scripts of a kernel."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from vmdebug.deadline import Deadline
from vmdebug.debugger import demangle, mi, startup
from vmdebug.debugger.connection import Connection
from vmdebug.errors import GdbError, HostError, UsageError
from vmdebug.spelling import option

_SETTINGS = (
    "mi-async on",  # before connecting: without it GDB answers no command while the guest runs
    f"remotetimeout {startup.REMOTE_SECONDS}",
    "tcp auto-retry off",  # QEMU listens before vmdebug says that it has started
    "dcache line-size 512",  # reads a frame's part of the stack at once; 64 bytes take several reads
)


def settings(connection: Connection, deadline: Deadline) -> None:
    """Make the settings that vmdebug needs.

    Raises:
        HostError: this GDB does not know them.
    """
    with _usable():
        for setting in _SETTINGS:
            connection.execute(f"-gdb-set {setting}", deadline)


def commands(connection: Connection, deadline: Deadline) -> None:
    """Define the MI commands of `gdbinit/vmd_mi.py`.

    Raises:
        HostError: this GDB has no Python, or is too old.
    """
    script = "python import vmd_mi; vmd_mi.define()"
    with _usable():
        connection.execute(f"-interpreter-exec console {mi.quote(script)}", deadline)


def symbols(connection: Connection, vmlinux: Path, deadline: Deadline) -> None:
    """Load a kernel's symbols in place of those that are loaded.

    Raises:
        UsageError: GDB cannot read the file; the message has GDB's reason.
    """
    # GDB splits at blanks and removes quotes, as a shell does.
    quoted = re.sub(r"([\s\"'\\])", r"\\\1", str(vmlinux))
    try:
        connection.execute(f"-gdb-set {demangle.STYLE} {demangle.style(vmlinux)}", deadline)
        connection.execute(f"-file-exec-and-symbols {quoted}", deadline)
        # Restore GDB's default, for modules and for files that a person loads.
        connection.execute(f"-gdb-set {demangle.STYLE} auto", deadline)
    except GdbError as error:
        raise UsageError(
            f"GDB cannot read the symbols in {vmlinux}: {error.words or error.message}",
            hint="give the kernel's vmlinux, an ELF file with debug information:"
            f" {option('vmlinux', 'FILE')}",
        ) from error


def scripts(connection: Connection, directory: Path, deadline: Deadline) -> list[str]:
    """Source a kernel's GDB scripts; return GDB's warnings and the scripts' errors.

    Args:
        connection: The connection to GDB.
        directory: Directory with `vmlinux-gdb.py` beside `scripts/gdb`.
        deadline: When to give up.
    """
    said: list[str] = []
    for command in ("python import vmd_scripts; vmd_scripts.Scripts()", f"vmd-scripts {directory}"):
        answer = connection.execute(f"-interpreter-exec console {mi.quote(command)}", deadline)
        said += answer.log.splitlines()
    return said


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Convert a refused command in the block into the error for an unusable GDB."""
    try:
        yield
    except GdbError as error:
        raise HostError(
            f"this GDB cannot be used: {error.words or error.message}",
            hint="vmdebug needs GDB 13.1 or newer with Python: apt install gdb",
            detail=error.detail,
        ) from error
