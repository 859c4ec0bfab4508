"""Tells drgn which plugins there are, which it finds out slowly.

drgn asks importlib.metadata for the entry points of all installed packages, which takes a fifteenth of the
time to the first answer of `vmdebug drgn`. As a rule only drgn itself has plugins: its commands.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence

_CHOSEN, _DISABLED = "DRGN_PLUGINS", "DRGN_DISABLE_PLUGINS"
"""Variables with which users choose plugins; see "Plugins" in drgn's documentation."""

_GROUP = re.compile(r"^\[drgn\.plugins\]\n((?:[^\[\n].*\n|\n)*)", re.MULTILINE)
_MODULE = re.compile(r"(\w+) *= *(\w+(?:\.\w+)*)")


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Name the plugins for a program of drgn that the block opens, if that is possible.

    The block sets variables of this process, so no other thread may start programs meanwhile.
    """
    found = None if _CHOSEN in os.environ or _DISABLED in os.environ else of_drgn(sys.path)
    if found is None:
        yield
        return
    os.environ |= {_CHOSEN: ",".join(f"{name}={module}" for name, module in found), _DISABLED: "*"}
    try:
        yield
    finally:
        del os.environ[_CHOSEN], os.environ[_DISABLED]


def of_drgn(path: Sequence[str]) -> list[tuple[str, str]] | None:
    """Return the names and modules of drgn's own plugins; None if there may be others.

    Args:
        path: Where Python looks for packages: `sys.path`.
    """
    # importlib.metadata also asks finders that other packages have added.
    if sum(hasattr(each, "find_distributions") for each in sys.meta_path) > 1:
        return None
    groups: list[tuple[str, str]] = []
    for directory in path:
        found = _groups(directory)
        if found is None:
            return None
        groups += found
    if len(groups) != 1 or not groups[0][0].startswith("drgn-"):
        return None
    lines = [line.strip() for line in groups[0][1].splitlines() if line.strip()]
    matches = [match for line in lines if (match := _MODULE.fullmatch(line))]
    return [(match[1], match[2]) for match in matches] if len(matches) == len(lines) else None


def _groups(directory: str) -> list[tuple[str, str]] | None:
    """Return the packages in a directory that have plugins, with the lines that name these.

    None: it cannot be told, because it is a zip file or an egg.
    """
    try:
        names = os.listdir(directory or ".")  # noqa: PTH208 - a Path for each package takes long
    except NotADirectoryError:
        return None
    except OSError:
        return []
    found = []
    for name in names:
        kind = name.lower()
        if kind == "egg-info":
            return None
        if kind.endswith((".dist-info", ".egg-info")):
            group = _GROUP.search(_entry_points(f"{directory or '.'}/{name}"))
            if group is not None:
                found.append((kind, group[1]))
    return found


def _entry_points(package: str) -> str:
    file = f"{package}/entry_points.txt"
    with contextlib.suppress(OSError, ValueError), open(file, encoding="utf-8") as stream:  # noqa: PTH123
        return stream.read()
    return ""
