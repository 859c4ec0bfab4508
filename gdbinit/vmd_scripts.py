"""Sources the kernel's own GDB scripts (`lx-…`), and keeps what works when some of it does not."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import gdb
import vmd_batch

LOADER = "vmlinux-gdb.py"


def imports(loader: str) -> list[str]:
    """Return the modules that a `vmlinux-gdb.py` imports, in its order."""
    return re.findall(r"^\s*import (linux\.\w+)", loader, re.MULTILINE)


class Scripts(gdb.Command):
    """Source the kernel's own GDB scripts: vmd-scripts DIRECTORY.

    DIRECTORY holds vmlinux-gdb.py beside scripts/gdb. Each part that does not work with
    this kernel is named in one line; the others stay usable.

    Example: vmd-scripts /src/linux
    """

    NAME = "vmd-scripts"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_SUPPORT, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Import each part by itself."""
        directory = Path(argument).absolute()
        try:
            parts = imports((directory / LOADER).read_text())
        except OSError as error:
            vmd_batch.say(f"no kernel GDB scripts: {error}")
            return
        # The loader does just this: it stands beside `scripts/gdb` and imports its parts.
        sys.path.insert(0, str(directory / "scripts" / "gdb"))
        for reason, broken in _failures(parts).items():
            vmd_batch.say(f"kernel GDB scripts without {', '.join(broken)}: {reason}")


def _failures(parts: list[str]) -> dict[str, list[str]]:
    """Import each part; return those that failed, by reason."""
    failures: dict[str, list[str]] = {}
    for part in parts:
        try:
            importlib.import_module(part)
        except Exception as error:  # noqa: BLE001 - theirs can fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            failures.setdefault(reason, []).append(part)
    return failures
