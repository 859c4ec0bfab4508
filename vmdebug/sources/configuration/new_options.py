"""The options that a source has and an older `.config` lacks; make would take their defaults without a word.

`make` runs `conf --syncconfig` when a .config is older than its source. It asks for the value of each new
option, and takes the defaults at the end of its input. With KCONFIG_NOSILENTUPDATE it stops instead: see
Documentation/kbuild/kconfig.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.sources.configuration import dotconfig
from vmdebug.sources.configuration.dotconfig import Configuration
from vmdebug.sources.configuration.requirements import Need

STOP = {"KCONFIG_NOSILENTUPDATE": "1"}
"""The environment in which make stops at a .config that is older than its source."""

STOPPED = "The configuration requires explicit update"
"""What it says then, on stderr."""

_TRIED = ".config.vmdebug"


def take(
    tree: Path,
    needs: Iterable[Need],
    *,
    make: Callable[..., tuple[str, ...]],
    env: Mapping[str, str],
    deadline: Deadline,
) -> dict[str, str]:
    """Give the new options of a .config their defaults, and return these by name, with CONFIG_.

    Args:
        tree: The directory of the .config.
        needs: What a boot of the kernel here needs.
        make: Returns make's command line for targets.
        env: make's environment.
        deadline: When to give up.

    Raises:
        UsageError: a boot needs another value; the .config is as it was.
        BuildError: make failed.
        DeadlineError: it took too long.
    """
    listed = process.run(make("-s", "listnewconfig"), env=env, deadline=deadline).stdout
    new = dotconfig.options(listed)
    config, tried = tree / ".config", tree / _TRIED
    before = config.read_bytes()
    try:
        tried.write_bytes(before)
        # Without the second variable conf writes auto.conf, if there is none, and make then trusts that.
        trial = {**env, "KCONFIG_CONFIG": str(tried), "KCONFIG_AUTOCONFIG": str(tried)}
        process.run(make("-s", "olddefconfig"), env=trial, deadline=deadline)
        _check(needs, dotconfig.options(before.decode(errors="replace")), dotconfig.read(tried), new, tree)
        tried.replace(config)
    finally:
        for left in (tried, tree / f"{_TRIED}.old"):
            left.unlink(missing_ok=True)
    return new


def _check(
    needs: Iterable[Need],
    before: Mapping[str, str],
    after: Mapping[str, str],
    new: Mapping[str, str],
    tree: Path,
) -> None:
    was, now = Configuration("", dict(before)), Configuration("", dict(after))
    lost = [need for need in needs if not need.met(now) and (f"CONFIG_{need.option}" in new or need.met(was))]
    if not lost:
        return
    values = ", ".join(f"CONFIG_{need.option}={now.value(need.option)}" for need in lost)
    script = " ".join(f"-{'d' if need.off else 'e'} {need.option}" for need in lost)
    width = max(len(need.option) for need in lost)
    raise UsageError(
        f"{tree}/.config is older than its source, and with the defaults of its new options the kernel cannot"
        f" boot here: {values}",
        hint=f"set them, and what they depend on: scripts/config --file {tree}/.config {script}",
        detail="\n".join(
            [
                *(f"CONFIG_{need.option:<{width}}  {need.why}, for: {need.purpose}" for need in lost),
                "the new options and their defaults:",
                *(f"{name}={value}" for name, value in new.items()),
            ]
        ),
    )
