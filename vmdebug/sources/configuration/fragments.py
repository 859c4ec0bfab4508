"""Fragments of kernel configurations: vmdebug's by name, others by path.

A fragment has lines of a .config, as `scripts/kconfig/merge_config.sh` takes them. Two lines in the comment
at its top have a meaning::

    # Needs: base gdb       the fragments that this one builds on; merged too if the base is minimal
    # Wishes: PCI_QUIRKS    options that are only preferred: vmdebug reports those that are not set
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
_HEADER_LINE = re.compile(r"^# (Needs|Wishes): (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A fragment.

    Args:
        name: As the user wrote it: "vm-boot", "mine.config".
        path: Its file.
        options: The options that it sets, with CONFIG_; "n" for those that it turns off.
        needs: The names of fragments that it builds on.
        wishes: The options that are only preferences, with CONFIG_.
    """

    name: str
    path: Path
    options: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    wishes: frozenset[str] = frozenset()


def find(name: str) -> Path:
    """Return the file of a fragment, by its name or path.

    Raises:
        UsageError: there is none; the hint lists the names.
    """
    directory = shipped.kconfigs()
    ours = directory / f"{name}.config"
    found = ours if ours.is_file() else Path(name)
    if not found.is_file():
        names = ", ".join(sorted(path.stem for path in directory.glob("*.config")))
        raise UsageError(
            f"there is no fragment {name}: neither {ours} nor a file with that name",
            hint=f"the fragments of vmdebug are: {names}",
        )
    return found.absolute()


def load(name: str) -> Fragment:
    """Read a fragment, by its name or path.

    Raises:
        UsageError: there is none, it cannot be read, or sets no option.
    """
    path = find(name)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the fragment {path} cannot be read: {error}", hint="is it a text file?") from error
    options = dotconfig.options(text)
    if not options:
        raise UsageError(
            f"the fragment {path} sets no option",
            hint="write lines as in a .config: CONFIG_NAME=y, # CONFIG_NAME is not set",
        )
    head = _HEAD.match(text)
    says = dict(_HEADER_LINE.findall(head[0] if head else ""))
    return Fragment(
        name=name,
        path=path,
        options=options,
        needs=tuple(says.get("Needs", "").split()),
        wishes=frozenset(f"CONFIG_{option}" for option in says.get("Wishes", "").split()),
    )


def with_needs(wanted: Sequence[Fragment]) -> tuple[Fragment, ...]:
    """Return the fragments and those that they need, each once, before the first that needs it."""
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
    """Return the options that fragments set together, and the last fragment that sets each."""
    return {option: (value, fragment) for fragment in fragments for option, value in fragment.options.items()}
