"""A directory for files that GDB reads; it is removed when GDB ends."""

from __future__ import annotations

import atexit
import functools
from pathlib import Path


@functools.cache
def directory() -> Path:
    """Return it."""
    import shutil  # noqa: PLC0415 - slow to import, and many guests need no such file
    import tempfile  # noqa: PLC0415

    found = Path(tempfile.mkdtemp(prefix="vmd-modules-"))
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found
