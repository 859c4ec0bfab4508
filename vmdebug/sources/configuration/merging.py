"""Kernel configuration: merging fragments, and proving that what they ask for came about.

Merging is the kernel's own: scripts/kconfig/merge_config.sh puts the fragments
together, a later one over an earlier, and `make KCONFIG_ALLCONFIG=…` turns that into
a configuration (Documentation/kbuild/kconfig.rst). Kconfig drops without a word what
it doesn't know and what depends on something that is off, so the result is compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError
from vmdebug.sources.configuration import dotconfig

REQUESTED = "requested.config"
"""The merged fragments, beside the `.config` made from them."""


@dataclass(frozen=True, slots=True)
class Unmet:
    """An option that is not as a fragment asked.

    Args:
        option: Its name, with CONFIG_.
        wanted: The value asked for, as in a .config; "n" where it was to be off.
        found: The value it has; "n" where it is off or absent.
        known: Whether any Kconfig file of the tree defines it.
    """

    option: str
    wanted: str
    found: str
    known: bool

    def __str__(self) -> str:
        why = "something it depends on or is selected by decides" if self.known else "unknown to this tree"
        return f"{self.option}: wanted {self.wanted}, is {self.found} ({why})"


def merge(
    source: Path,
    directory: Path,
    fragments: Sequence[Path],
    *,
    defaults: str = "allnoconfig",
    make: Sequence[str] = ("make",),
    env: Mapping[str, str] | None = None,
    deadline: Deadline,
) -> tuple[Unmet, ...]:
    """Write `.config` into a build directory.

    Args:
        source: The kernel's source.
        directory: The O= directory; it exists.
        fragments: Applied in this order.
        defaults: What an option gets that no fragment names: `allnoconfig` turns it off,
            `alldefconfig` gives it the default of its Kconfig.
        make: make, with what belongs on its command line (CC=…).
        env: The environment of both programs.
        deadline: When they are given up.

    Returns:
        The options that are not as asked.

    Raises:
        BuildError: make failed.
        DeadlineError: it took too long.
    """
    requested = directory / REQUESTED
    # `-m` only merges; the script's own call of make needs to be run in the source, where it also
    # leaves files, and the source need not be ours to write.
    process.run(
        merge_argv(source, requested, fragments),
        env={**(env or {}), "KCONFIG_CONFIG": str(requested)},
        cwd=directory,
        deadline=deadline,
    )
    argv = [*make, "-C", str(source), f"O={directory}", f"KCONFIG_ALLCONFIG={requested}", defaults]
    process.run(argv, env=env, deadline=deadline)
    return unmet(requested.read_text(), (directory / ".config").read_text(), source)


def merge_argv(source: Path, requested: Path, fragments: Sequence[Path]) -> tuple[str, ...]:
    """Return the command that merges fragments into the file `requested`."""
    script = source / "scripts/kconfig/merge_config.sh"
    return (str(script), "-m", "-O", str(requested.parent), *map(str, fragments))


def unmet(requested: str, final: str, source: Path) -> tuple[Unmet, ...]:
    """Return the options of `requested` that `final` has otherwise.

    Args:
        requested: Text of the merged fragments.
        final: Text of the .config made from them.
        source: The kernel's source, looked through only for options that are missing.
    """
    is_now = dotconfig.options(final)
    missing = {
        name: wanted
        for name, wanted in dotconfig.options(requested).items()
        if is_now.get(name, "n") != wanted
    }
    known = _defined(source, missing) if missing else frozenset()
    return tuple(
        Unmet(name, wanted, is_now.get(name, "n"), name in known) for name, wanted in missing.items()
    )


def refuse(unmet_options: Sequence[Unmet], source: Path) -> None:
    """Make sure that nothing was dropped that the tree knows.

    An option that no Kconfig file of the tree defines belongs to another version of
    the kernel, and cannot be had.

    Raises:
        BuildError: an option that the tree knows is not as asked.
    """
    dropped = [option for option in unmet_options if option.known]
    if dropped:
        raise BuildError(
            f"{len(dropped)} options of the fragments could not be set with the source {source}",
            hint=f"see what {dropped[0].option} depends on: grep -rn 'config {dropped[0].option[7:]}' in it",
            detail="\n".join(map(str, dropped)),
        )


def _defined(source: Path, names: Mapping[str, str]) -> frozenset[str]:
    bare = "|".join(name.removeprefix("CONFIG_") for name in names)
    defines = re.compile(rf"^\s*(?:menu)?config\s+({bare})\s*$", re.MULTILINE)
    found = {
        f"CONFIG_{name}"
        for file in source.rglob("Kconfig*")
        if file.is_file()
        for name in defines.findall(file.read_text(errors="replace"))
    }
    return frozenset(found)
