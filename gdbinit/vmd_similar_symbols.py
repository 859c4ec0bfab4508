"""The symbols nearest to one that does not exist. Imports no GDB."""

from __future__ import annotations

import re
from collections.abc import Iterable

ENOUGH = 3

_LISTED = re.compile(r"^\[\s*\d+\] \S+ \S+ (\S+)", re.MULTILINE)


def listed(text: str) -> set[str]:
    """Return the names out of what GDB's `maint print msymbols` prints."""
    return set(_LISTED.findall(text))


def nearest(wanted: str, names: Iterable[str]) -> list[str]:
    """Return up to three names that look like `wanted`, the nearest first.

    Args:
        wanted: What the user wrote.
        names: All there are; a kernel has some 100,000, so only those that could
            come near are compared in full.
    """
    pairs = _pairs(wanted)
    likely = {
        name
        for name in names
        if abs(len(name) - len(wanted)) <= len(wanted) // 3 and 2 * len(pairs & _pairs(name)) >= len(pairs)
    }
    import difflib  # noqa: PLC0415 - imported when a symbol does not exist

    return difflib.get_close_matches(wanted, sorted(likely), n=ENOUGH, cutoff=0.7)


def _pairs(name: str) -> set[str]:
    return {name[at : at + 2] for at in range(len(name) - 1)}
