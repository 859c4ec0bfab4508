"""Makes compile_commands.json of a kernel's build directory, for clangd and other tools.

kbuild keeps the command of each object in `.NAME.o.cmd` beside it. The kernel's own
scripts/clang-tools/gen_compile_commands.py reads the same files; here no script of the tree is run.
See https://clang.llvm.org/docs/JSONCompilationDatabase.html.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmdebug.errors import UsageError
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


def write(build: Path) -> int:
    """Write compile_commands.json into a build directory, and return the number of files in it.

    Raises:
        UsageError: no kernel was built there.
        OSError: it cannot be written.
    """
    found = sorted(commands(build), key=lambda each: each.file)
    if not found:
        raise UsageError(
            f"no kernel was built in {build}: it has no .*.o.cmd files", hint="run make there first"
        )
    data = msgspec.json.format(msgspec.json.encode(found), indent=1)
    write_atomically(build / NAME, data + b"\n")
    return len(found)


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
