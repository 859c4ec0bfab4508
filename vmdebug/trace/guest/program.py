"""The binary of the reader in the guest: shipped with vmdebug, or compiled at its first use."""

from __future__ import annotations

from pathlib import Path

from vmdebug import compiler
from vmdebug.compiler import Program
from vmdebug.deadline import Deadline
from vmdebug.progress import Report

NAME = "vmdebug-trace-reader"

FLAGS = ("-static", "-Os", "-s", "-Wall")
"""Options of the C compiler. Static, because the guest may have no C library."""

_HERE = Path(__file__).parent
SOURCE = _HERE / "reader.c"
SHIPPED = _HERE / "shipped"
"""Directory with ARCH/vmdebug-trace-reader for each architecture of the wheel; see hatch_build.py."""


def find(arch: str, into: Path, *, report: Report, deadline: Deadline) -> Path:
    """Return the path of the reader's binary. Compile it unless the cache has it.

    Args:
        arch: The guest's architecture, as `uname -m` prints it.
        into: The cache directory.
        report: Called before the compiler runs.
        deadline: When the compiler is killed.

    Raises:
        HostError: there is no C compiler for it, or no static C library.
        DeadlineError: the compiler took too long.
    """
    shipped = SHIPPED / arch / NAME
    if shipped.is_file():
        return shipped
    program = Program(name=NAME, what="the reader of the guest's traces", source=SOURCE, flags=FLAGS)
    return compiler.compiled(program, arch, into, report=report, deadline=deadline)
