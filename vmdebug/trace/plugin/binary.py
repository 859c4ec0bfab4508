"""Compiles the plugin; hatch_build.py, which has only the standard library, imports this module, too."""

from __future__ import annotations

import platform
from pathlib import Path

from vmdebug import compiler
from vmdebug.compiler import Program
from vmdebug.deadline import Deadline
from vmdebug.progress import Report

VERSIONS = (7, 4, 1)
"""The versions of QEMU's plugin API that the plugin can be built for, in the order in which to try them.

Each QEMU accepts a range of versions: 7.2 accepts 0 and 1, 10.0 accepts 2 to 4, 11.1 only 7.
"""

FLAGS = ("-O2", "-Wall", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")

_HERE = Path(__file__).parent
SOURCE = _HERE / "plugin.c"
PARTS = tuple(_HERE / each for each in ("coverage.c", "coverage.h", "qemu.h"))
SHIPPED = _HERE / "shipped"
"""Directory with ARCH/vmdebug-plugin-VERSION for each architecture of the wheel; see hatch_build.py."""


def shipped(arch: str, version: int) -> Path:
    """Return the path of the binary in a wheel, for an architecture and a version of the plugin API."""
    return SHIPPED / arch / f"vmdebug-plugin-{version}"


def compile_into(into: Path, version: int, *, report: Report, deadline: Deadline) -> Path:
    """Compile the plugin for a version of the plugin API into a directory, unless the directory has it.

    Raises:
        HostError: there is no C compiler, or the directory cannot be written.
        DeadlineError: the compiler took too long.
    """
    wanted = program(version)
    return compiler.compiled(wanted, platform.machine(), into, report=report, deadline=deadline)


def program(version: int) -> Program:
    """Return what is compiled for a version of the plugin API."""
    return Program(
        name=f"vmdebug-plugin-{version}",
        what="QEMU's trace plugin",
        source=SOURCE,
        flags=(*FLAGS, f"-DAPI={version}"),
        parts=PARTS,
    )
