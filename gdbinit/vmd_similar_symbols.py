"""Finds existing symbols similar to one that does not exist. Does not import GDB."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST_LIST = 3

_LISTED = re.compile(r"^\[\s*\d+\] \S+ \S+ (\S+)", re.MULTILINE)


def listed(text: str) -> set[str]:
    """Return the names in the output of GDB's `maint print msymbols`."""
    return set(_LISTED.findall(text))


def nearest(wanted: str, names: Iterable[str]) -> list[str]:
    """Return up to three names similar to `wanted`, the most similar first.

    Args:
        wanted: The name that the user gave.
        names: All names. A kernel has some 100,000, so a cheap test selects those that are compared in full.
    """
    pairs = _pairs(wanted)
    likely = {
        name
        for name in names
        if abs(len(name) - len(wanted)) <= len(wanted) // 3 and 2 * len(pairs & _pairs(name)) >= len(pairs)
    }
    import difflib  # noqa: PLC0415 - needed only when a symbol does not exist

    return difflib.get_close_matches(wanted, sorted(likely), n=LONGEST_LIST, cutoff=0.7)


def _pairs(name: str) -> set[str]:
    return {name[at : at + 2] for at in range(len(name) - 1)}
