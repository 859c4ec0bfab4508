"""kbuild, the kernel's build system: its command line, its environment, its tools, its progress.

Documentation/kbuild/kbuild.rst and reproducible-builds.rst describe the variables.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from vmdebug import process
from vmdebug.progress import Report, Step

BUILDING = "building the kernel"
"""The name of the step in reports."""

_TOOLS = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "gzip": "gzip",
    "xz": "xz-utils",
}
"""Programs that a kernel build starts, and the Debian packages that have them."""

_COMPILED = re.compile(r"^  (?:CC|AS|HOSTCC|CC \[M\])\s+(\S+\.o)$")

# A calling make exports its own flags and jobs. Everything else in a developer's environment (ARCH, LLVM,
# KCFLAGS, KBUILD_…) is meant for the developer's own tree.
_OF_CALLING_MAKE = re.compile(
    r"^(?:MAKE(?:FLAGS|LEVEL|_TERMOUT|_TERMERR)|MFLAGS|MAKEOVERRIDES|GNUMAKEFLAGS|O|V|W)$"
)
# These are settings for another kernel than the one that vmdebug builds.
_OF_ANOTHER_KERNEL = re.compile(
    r"^(?:MAKE.*|MFLAGS|KBUILD_.*|KCONFIG_.*|INSTALL_.*|K[AC]FLAGS|KCPPFLAGS|ARCH|CROSS_COMPILE|LLVM|LLVM_IAS|"
    r"LOCALVERSION|[OVWCM])$"
)
_REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "vmdebug",
    "KBUILD_BUILD_HOST": "vmdebug",
    # By default each make in the same directory increments it.
    "KBUILD_BUILD_VERSION": "1",
}


def argv(source: Path, directory: Path, *words: str) -> tuple[str, ...]:
    """Return the command line of make for a kernel.

    Args:
        source: The kernel's source.
        directory: The build directory; the source itself for a build in-tree.
        *words: Options, variables and targets.
    """
    outside = () if directory == source else (f"O={directory}",)
    return ("make", "-C", str(source), *outside, *words)


def environment(of: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for make in a developer's own tree: the caller's, with messages in English.

    Args:
        of: The environment to change; None: that of this process.
    """
    return _environment(of, _OF_CALLING_MAKE)


def clean_environment(of: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a reproducible build: without the variables that would change its result.

    Args:
        of: The environment to change; None: that of this process.
    """
    return {**_environment(of, _OF_ANOTHER_KERNEL), **_REPRODUCIBLE}


def _environment(of: Mapping[str, str] | None, without: re.Pattern[str]) -> dict[str, str]:
    kept = {
        name: value for name, value in (os.environ if of is None else of).items() if not without.match(name)
    }
    # Only root has the directory of depmod on PATH.
    path = f"{kept.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    # LC_ALL overrides LC_MESSAGES, and makes the compiler quote in ASCII: vmdebug reads the messages.
    return {**kept, "PATH": path, "LC_ALL": "C"}


def check_tools() -> None:
    """Check that the programs which a kernel build starts are installed.

    Raises:
        HostError: one is not; the hint names its package.
    """
    for program, package in _TOOLS.items():
        process.find(program, package=package)


def compiler_command() -> str:
    """Return the compiler as make's CC: with ccache where that is installed."""
    return "ccache gcc" if shutil.which("ccache") else "gcc"


def jobs() -> int:
    """Return how many compilers to run at once: one for each CPU that this process may use."""
    return len(os.sched_getaffinity(0))


class ObjectCounter:
    """Counts the objects that make compiles, and reports them.

    Args:
        done: How many objects an interrupted build has left.
        total: How many there are; None where that is unknown.
        report: Receives a step for each object.
    """

    def __init__(self, done: int, total: int | None, report: Report) -> None:
        self.done = done
        self._total = total
        self._report = report

    def line(self, text: str) -> None:
        """Read a line of make's output."""
        compiled = _COMPILED.match(text)
        if compiled:
            self.done += 1
            total = None if self._total is None else max(self._total, self.done)
            self._report(Step(BUILDING, done=self.done, total=total, note=compiled[1]))
