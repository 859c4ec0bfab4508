"""Fragments of kernel configuration: ours by name, anyone's by path, and what their heads say.

A fragment is what `scripts/kconfig/merge_config.sh` takes: lines of a .config. In the comment at the
top of ours two lines are read as well::

    # Needs: base gdb       fragments that this one builds on, where nothing else brings their options
    # Wishes: PCI_QUIRKS    options that are a preference: that they cannot be had is told, and no failure
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmdebug import shipped
from vmdebug.errors import UsageError
from vmdebug.sources.configuration import dotconfig

_HEAD = re.compile(r"\A(?:#.*\n)*")
_SAYS = re.compile(r"^# (Needs|Wishes): (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A fragment.

    Args:
        name: As its user wrote it: "vm-boot", "mine.config".
        path: Its file.
        options: What it asks for, "n" for what it turns off, with CONFIG_.
        needs: Names of fragments that it builds on.
        wishes: Options that are a preference, with CONFIG_.
    """

    name: str
    path: Path
    options: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    wishes: frozenset[str] = frozenset()


def find(name: str) -> Path:
    """Return the file of a fragment: one of ours by its name, or a path.

    Raises:
        UsageError: there is none; the hint has the names of ours.
    """
    directory = shipped.kconfigs()
    ours = directory / f"{name}.config"
    found = ours if ours.is_file() else Path(name)
    if not found.is_file():
        names = ", ".join(sorted(path.stem for path in directory.glob("*.config")))
        raise UsageError(
            f"no fragment {name}: neither {ours} nor a file of that name", hint=f"ours are: {names}"
        )
    return found.absolute()


def load(name: str) -> Fragment:
    """Return a fragment: one of ours by its name, or a file.

    Raises:
        UsageError: there is none, it cannot be read, or asks for nothing.
    """
    path = find(name)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the fragment {path} cannot be read: {error}", hint="is it a text file?") from error
    options = dotconfig.options(text)
    if not options:
        raise UsageError(
            f"the fragment {path} asks for nothing",
            hint="write its lines as in a .config: CONFIG_NAME=y, # CONFIG_NAME is not set",
        )
    head = _HEAD.match(text)
    says = dict(_SAYS.findall(head[0] if head else ""))
    return Fragment(
        name=name,
        path=path,
        options=options,
        needs=tuple(says.get("Needs", "").split()),
        wishes=frozenset(f"CONFIG_{option}" for option in says.get("Wishes", "").split()),
    )


def with_needs(wanted: Sequence[Fragment]) -> tuple[Fragment, ...]:
    """Return fragments with those that they build on, each once, before the first that needs it."""
    found: dict[Path, Fragment] = {}
    by_path = {each.path: each for each in wanted}

    def add(fragment: Fragment) -> None:
        if fragment.path in found:
            return
        for name in fragment.needs:
            below = load(name)
            add(by_path.get(below.path, below))
        found[fragment.path] = fragment

    for each in wanted:
        add(each)
    return tuple(found.values())


def asked(fragments: Sequence[Fragment]) -> dict[str, tuple[str, Fragment]]:
    """Return what fragments ask for together, a later one over an earlier, and which of them does."""
    return {option: (value, fragment) for fragment in fragments for option, value in fragment.options.items()}
