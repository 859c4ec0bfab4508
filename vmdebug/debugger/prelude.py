"""The first command of each GDB that vmdebug starts: where `gdbinit/` lies, and its guest's architecture."""

from __future__ import annotations

from vmdebug import arch, shipped


def importing(*modules: str, row: arch.Arch | None = None) -> str:
    """Return the command that puts `gdbinit/` on Python's path and begins to import modules of it.

    Args:
        modules: Their names; see `gdbinit/vmd_preload.py`.
        row: The guest's architecture; None leaves it to GDB, which goes by its vmlinux.
    """
    wanted = ", ".join(map(repr, modules))
    facts = f"import vmd_arch; vmd_arch.use({arch.for_gdb(row)!r}); " if row is not None else ""
    return (
        f"python import sys; sys.path.insert(0, {str(shipped.gdbinit())!r})"
        f"; {facts}import vmd_preload; vmd_preload.start({wanted})"
    )
