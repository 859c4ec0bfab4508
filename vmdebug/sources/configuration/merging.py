"""Merges fragments to a configuration, and compares the result with what they ask for.

The kernel's own tools merge: scripts/kconfig/merge_config.sh concatenates the fragments, a later one
overriding an earlier one, and `make KCONFIG_ALLCONFIG=…` makes a configuration of them
(Documentation/kbuild/kconfig.rst). Kconfig silently drops options that it does not know, and options whose
dependencies are off.
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
"""The file with the merged fragments, beside the `.config` made from them."""


@dataclass(frozen=True, slots=True)
class Unmet:
    """An option that does not have the value that a fragment asks for.

    Args:
        option: Its name, with CONFIG_.
        wanted: The requested value, as in a .config; "n" for off.
        found: The value that it has; "n" if it is off or absent.
        known: Whether a Kconfig file of the source defines it.
    """

    option: str
    wanted: str
    found: str
    known: bool

    def __str__(self) -> str:
        why = "a dependency or a select decides" if self.known else "this kernel has no such option"
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
    """Merge fragments to a `.config` in a build directory.

    Args:
        source: The kernel's source.
        directory: The O= directory; it exists.
        fragments: The fragments, in this order.
        defaults: The value of options that no fragment names: off with `allnoconfig`, the Kconfig default
            with `alldefconfig`.
        make: make and its variables (CC=…).
        env: The environment of both programs.
        deadline: When to stop them.

    Returns:
        The options that do not have the requested value.

    Raises:
        BuildError: make failed.
        DeadlineError: it took too long.
    """
    requested = directory / REQUESTED
    # `-m` only merges. Otherwise the script runs make itself, which must be run in the source and writes
    # files there; the source may be read-only.
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
    """Return the options of `requested` that have another value in `final`.

    Args:
        requested: The text of the merged fragments.
        final: The text of the .config made from them.
        source: The kernel's source, to search for the definitions of missing options.
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


def check_met(unmet_options: Sequence[Unmet], source: Path) -> None:
    """Check that every option that this kernel has was set.

    An option that no Kconfig file of the source defines belongs to another version of the kernel.

    Raises:
        BuildError: an option that this kernel has was not set.
    """
    dropped = [option for option in unmet_options if option.known]
    if dropped:
        raise BuildError(
            f"{len(dropped)} options of the fragments could not be set with the source {source}",
            hint=f"find its dependencies: grep -rn 'config {dropped[0].option[7:]}' in the source",
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
