"""Makes compile_commands.json of a kernel's build directory, for clangd and other tools.

kbuild keeps the command of each object in `.NAME.o.cmd` beside it. The kernel's own
scripts/clang-tools/gen_compile_commands.py reads the same files; here no script of the tree is run.
See https://clang.llvm.org/docs/JSONCompilationDatabase.html.

The builtin kernel's build does not keep these files. Its commands are made of what gcc has recorded in the
DWARF, and of the options that the kernel's Makefile gives to every file and gcc does not record.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from vmdebug.errors import UsageError
from vmdebug.kimage.units import Unit
from vmdebug.paths import write_atomically

NAME = "compile_commands.json"

_COMMAND = re.compile(r"^(?:saved)?cmd_\S+\.o := (.*) (\S+\.[cS])(?: *;.*)?$")
"""The first line of a .cmd file; `savedcmd_` since Linux 6.4 (92215e7a801d)."""

_SKIPPED = ("tools", "Documentation", ".git", "include")


class Command(msgspec.Struct, frozen=True):
    """One entry of the database: how a file is compiled."""

    directory: str
    command: str
    file: str


def write(build: Path, found: Iterable[Command]) -> int:
    """Write compile_commands.json into a build directory, and return the number of files in it.

    Raises:
        UsageError: no kernel was built there.
        OSError: it cannot be written.
    """
    entries = sorted(set(found), key=lambda each: (each.file, each.command))
    if not entries:
        raise UsageError(
            f"no kernel was built in {build}: it has no .*.o.cmd files", hint="run make there first"
        )
    data = msgspec.json.format(msgspec.json.encode(entries), indent=1)
    write_atomically(build / NAME, data + b"\n")
    return len(entries)


def recorded(units: Iterable[Unit], source: Path, arch: str) -> Iterator[Command]:
    """Yield the command of each C file of a vmlinux, from its DWARF.

    Args:
        units: The compilation units.
        source: The source tree.
        arch: The directory of the architecture below `arch/` of the tree: "x86".
    """
    for unit in units:
        if not unit.file.endswith(".c"):
            continue
        options = " ".join(word for word in unit.producer.split() if word.startswith("-"))
        name = Path(unit.file).stem.replace("-", "_")
        own = " ".join(
            (
                f"-DKBUILD_BASENAME='\"{name}\"'",
                f"-DKBUILD_MODNAME='\"{name}\"'",
                f"-DKBUILD_MODFILE='\"{name}\"'",
                f"-D__KBUILD_MODNAME=kmod_{name}",
            )
        )
        words = ("gcc", *_included(source, Path(unit.directory), arch), options, own, "-c", unit.file)
        yield Command(unit.directory, " ".join(words), os.path.normpath(Path(unit.directory, unit.file)))


def _included(source: Path, build: Path, arch: str) -> Iterator[str]:
    """Yield LINUXINCLUDE and KBUILD_CPPFLAGS of the kernel's Makefile."""
    yield "-nostdinc"
    for kind in ("", "/uapi"):
        yield f"-I{source}/arch/{arch}/include{kind}"
        yield f"-I{build}/arch/{arch}/include/generated{kind}"
        yield f"-I{source}/include{kind}"
        yield f"-I{build}/include" if not kind else f"-I{build}/include/generated{kind}"
    for header in ("compiler-version.h", "kconfig.h", "compiler_types.h"):
        yield f"-include {source}/include/linux/{header}"
    yield "-D__KERNEL__"


def commands(build: Path) -> Iterator[Command]:
    """Yield the command of each object that make has built."""
    top = str(build)
    for here, below, files in os.walk(top):
        if here == top:
            below[:] = [name for name in below if name not in _SKIPPED]
        for name in files:
            if name.endswith(".o.cmd"):
                found = parse(Path(here, name).read_text(errors="replace").partition("\n")[0], build)
                if found is not None:
                    yield found


def parse(line: str, build: Path) -> Command | None:
    """Return the command in the first line of a .cmd file; None if it compiles no source file.

    Args:
        line: The line.
        build: The build directory, where make ran the command.
    """
    found = _COMMAND.match(line)
    if found is None:
        return None
    # In a makefile, `$` and `#` are escaped.
    prefix = found[1].replace("$(pound)", "#").replace("\\#", "#").replace("$$", "$")
    file = os.path.normpath(build / found[2])
    return Command(str(build), f"{prefix} {found[2]}", file)
