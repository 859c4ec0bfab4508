"""What a GDB of ours is told first: where our side of it lies, which is imported while symbols are read."""

from __future__ import annotations

from vmdebug import shipped


def importing(*modules: str) -> str:
    """Return the command that puts `gdbinit/` on Python's path and begins to import modules of it.

    Args:
        modules: Their names; see `gdbinit/vmd_ahead.py`.
    """
    wanted = ", ".join(map(repr, modules))
    return (
        f"python import sys; sys.path.insert(0, {str(shipped.gdbinit())!r})"
        f"; import vmd_ahead; vmd_ahead.begin({wanted})"
    )
