"""The agent's binary for a guest: shipped with vmdebug, or compiled at its first use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError
from vmdebug.progress import Report, Step

NAME = "vmdebug-agent"

FLAGS = ("-static", "-Os", "-s", "-Wall")
"""Options of the C compiler. Static, because the guest may have no C library."""

COMPILE_SECONDS = 120.0

_HERE = Path(__file__).parent
SOURCE = _HERE / "agent.c"
SHIPPED = _HERE / "shipped"
"""Directory with ARCH/vmdebug-agent for each architecture of the wheel; see hatch_build.py."""


def find(arch: str, into: Path, *, report: Report, deadline: Deadline) -> Path:
    """Return the path of the agent's binary. Compile it unless the cache has it.

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
    compiler = find_compiler(arch)
    seen = compiler.resolve().stat()
    words = f"{compiler} {seen.st_size} {seen.st_mtime_ns} {FLAGS}"
    key = hashlib.sha256(words.encode() + SOURCE.read_bytes()).hexdigest()[:16]
    target = into / f"{NAME}-{arch}-{key}"
    if not target.is_file():
        report(Step("compiling the guest's agent", note=arch))
        compile_to(target, compiler, deadline=deadline)
    return target


def compilers(arch: str) -> tuple[str, ...]:
    """Return the names of the C compilers for an architecture, the preferred one first."""
    cross = (f"{arch}-linux-gnu-gcc", f"{arch}-linux-musl-gcc")
    return ("cc", "gcc", "clang", *cross) if arch == platform.machine() else cross


def find_compiler(arch: str) -> Path:
    """Return a C compiler for an architecture.

    Raises:
        HostError: PATH has none.
    """
    for name in compilers(arch):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    package = "gcc libc6-dev" if arch == platform.machine() else f"gcc-{arch}-linux-gnu"
    raise HostError(
        f"no C compiler for {arch}: none of {', '.join(compilers(arch))} is on PATH",
        hint=f"install one: apt install {package}",
    )


def compile_to(target: Path, compiler: Path, *, deadline: Deadline) -> None:
    """Compile the agent.

    Args:
        target: The binary to write; it appears complete, by a rename.
        compiler: The C compiler.
        deadline: When the compiler is killed.

    Raises:
        HostError: the compiler fails. If the static C library is missing, the hint says so.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        words: list[str | Path] = [compiler, *FLAGS, "-o", temporary, SOURCE]
        process.run(words, deadline=deadline.at_most(COMPILE_SECONDS))
        temporary.replace(target)
    except BuildError as error:
        static = "cannot find -lc" in error.detail or "libc.a" in error.detail
        raise HostError(
            f"{compiler} does not compile the guest's agent",
            hint="install a static C library: apt install libc6-dev; Fedora: glibc-static" if static else "",
            detail=error.detail,
        ) from error
    except OSError as error:
        raise HostError(
            f"cannot write {target}: {error.strerror}", hint="make room there, or set XDG_CACHE_HOME"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
