"""The command line of a GDB, and the start of vmdebug's Python code in it."""

from __future__ import annotations

import os

from vmdebug import arch, shipped

REMOTE_SECONDS = 30
"""How long GDB waits for one answer of the gdbstub. Its default of 2 s is too short on a loaded host."""


ADAPT = "python import vmd_settings; vmd_settings.adapt()"
"""The GDB command that undoes unusable settings of a person's gdbinit."""

HOLD_LANGUAGE = "python import vmd_language; vmd_language.hold()"
"""The GDB command that saves the lookup of `main` in a vmlinux; see `gdbinit/vmd_language.py`."""

RESTORE_LANGUAGE = "python import vmd_language; vmd_language.restore_later()"
"""The GDB command that restores `language auto`."""

LATER = "python import vmd_later; vmd_later.run()"
"""The GDB command that does what was put off until the user's first command."""

_PYTHON_PATHS = ("PYTHONPATH", "PYTHONHOME")
"""Variables that lead GDB's Python to modules of another Python, or away from its own."""


def environment() -> dict[str, str]:
    """Return the environment of a GDB: without the variables that are for the caller's Python."""
    return {name: value for name, value in os.environ.items() if name not in _PYTHON_PATHS}


def mi_argv(gdb: str | os.PathLike[str]) -> list[str]:
    """Return the command line of a GDB that speaks MI: no start-up files, no questions, no network."""
    settings = (
        "set debuginfod enabled off",
        "set pagination off",
        "set confirm off",
        "set style enabled off",
        "set index-cache enabled on",
        # An internal error of GDB would leave a core file of 60 MB in the user's working directory.
        "maintenance set internal-error corefile no",
    )
    options = [word for setting in settings for word in ("-iex", setting)]
    return [os.fspath(gdb), "-nx", "-q", "--interpreter=mi4", *options]


def importing(*modules: str, row: arch.Arch | None = None) -> str:
    """Return the GDB command that puts `gdbinit/` on Python's path and imports modules of it in a thread.

    GDB reads symbols meanwhile; see `gdbinit/vmd_preload.py`.

    Args:
        modules: Names of the modules.
        row: The architecture of the guest; None has `gdbinit/` take it from vmlinux.
    """
    facts = None if row is None else arch.for_gdb(row)
    return (
        f"python import sys; sys.path.insert(0, {str(shipped.gdbinit())!r})"
        f"; import vmd_preload; vmd_preload.start({', '.join(map(repr, modules))}, arch={facts!r})"
    )
