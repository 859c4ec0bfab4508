"""Compiles a C program of vmdebug with the user's compiler, once for each version of both.

hatch_build.py imports it: it needs only the standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError
from vmdebug.progress import Report, Step

COMPILE_SECONDS = 120.0

GUEST_FLAGS = ("-static", "-Os", "-s", "-Wall")
"""Options of the C compiler for a `GuestProgram`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program to compile.

    Args:
        name: The start of its file's name.
        what: What it is, for messages: "the guest's agent".
        source: Its source.
        flags: Options of the C compiler.
        parts: Its other sources, and the headers of its own that they include.
    """

    name: str
    what: str
    source: Path
    flags: tuple[str, ...]
    parts: tuple[Path, ...] = ()

    def digest(self) -> str:
        """Return a checksum of its sources, in hex."""
        files = (self.source, *self.parts)
        return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestProgram:
    """A program that vmdebug runs in guests: shipped in the wheel, or compiled at its first use.

    It is static, because a guest may have no C library.

    Args:
        name: The name of its file.
        what: What it is, for messages: "the guest's agent".
        source: Its source. The wheel has the binary beside it, in shipped/ARCH; see hatch_build.py.
        parts: The headers of its own that it includes.
    """

    name: str
    what: str
    source: Path
    parts: tuple[Path, ...] = ()

    def shipped(self, arch: str) -> Path:
        """Return the path of its binary in a wheel."""
        return self.source.parent / "shipped" / arch / self.name

    def find(self, arch: str, into: Path, *, report: Report, deadline: Deadline) -> Path:
        """Return the path of its binary. Compile it unless the wheel or the directory has it.

        Args:
            arch: The guest's architecture, as `uname -m` prints it.
            into: The directory.
            report: Called before the compiler runs.
            deadline: When the compiler is killed.

        Raises:
            HostError: there is no C compiler for it, or no static C library.
            DeadlineError: the compiler took too long.
        """
        shipped = self.shipped(arch)
        if shipped.is_file():
            return shipped
        program = Program(
            name=self.name, what=self.what, source=self.source, flags=GUEST_FLAGS, parts=self.parts
        )
        return compiled(program, arch, into, report=report, deadline=deadline)


def compiled(program: Program, arch: str, into: Path, *, report: Report, deadline: Deadline) -> Path:
    """Return the path of a compiled program. Compile it unless the directory has it.

    Args:
        program: The program.
        arch: The architecture that it is for, as `uname -m` prints it.
        into: The directory.
        report: Called before the compiler runs.
        deadline: When the compiler is killed.

    Raises:
        HostError: there is no C compiler for it, it fails, or the directory cannot be written.
        DeadlineError: the compiler took too long.
    """
    compiler = find(arch)
    seen = compiler.resolve().stat()
    words = f"{compiler} {seen.st_size} {seen.st_mtime_ns} {program.flags} {program.digest()}"
    key = hashlib.sha256(words.encode()).hexdigest()[:16]
    target = into / f"{program.name}-{arch}-{key}"
    if not target.is_file():
        report(Step(f"compiling {program.what}", note=arch))
        _compile(program, target, compiler, deadline=deadline)
    return target


def names(arch: str) -> tuple[str, ...]:
    """Return the names of the C compilers for an architecture, the preferred one first."""
    cross = (f"{arch}-linux-gnu-gcc", f"{arch}-linux-musl-gcc")
    return ("cc", "gcc", "clang", *cross) if arch == platform.machine() else cross


def find(arch: str) -> Path:
    """Return a C compiler for an architecture.

    Raises:
        HostError: PATH has none.
    """
    for name in names(arch):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    package = "gcc libc6-dev" if arch == platform.machine() else f"gcc-{arch}-linux-gnu"
    raise HostError(
        f"no C compiler for {arch}: none of {', '.join(names(arch))} is on PATH",
        hint=f"install one: apt install {package}",
    )


def _compile(program: Program, target: Path, compiler: Path, *, deadline: Deadline) -> None:
    """Compile it; the file appears complete, by a rename."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sources = [program.source, *(each for each in program.parts if each.suffix == ".c")]
        words: list[str | Path] = [compiler, *program.flags, "-o", temporary, *sources]
        process.run(words, deadline=deadline.at_most(COMPILE_SECONDS))
        temporary.replace(target)
    except BuildError as error:
        static = "cannot find -lc" in error.detail or "libc.a" in error.detail
        raise HostError(
            f"{compiler} does not compile {program.what}",
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
