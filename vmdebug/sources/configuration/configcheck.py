"""Whether a .config is one for a guest: that boots our shell or a NixOS VM, and can be debugged."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vmdebug.errors import UsageError
from vmdebug.paths import holds
from vmdebug.sources.configuration import bases, requirements
from vmdebug.sources.configuration.dotconfig import Configuration
from vmdebug.sources.configuration.requirements import Need, Purpose

ALL = (*requirements.OWN, *requirements.NIXOS, *requirements.DEBUG)

HAS_TO: tuple[Purpose, ...] = ("our shell", "debugging")
"""What `kernel check` refuses a configuration for; a NixOS VM is not everybody's guest."""

NIXOS_TOO: tuple[Purpose, ...] = (*HAS_TO, "NixOS VM", "systemd")


class Line(msgspec.Struct, frozen=True):
    """One option that was looked at.

    Args:
        option: Its name, with CONFIG_.
        wanted: The value that it should have.
        found: The value that it has, "n" where it is off.
        purpose: Who wants it.
        why: What it is for.
        mends: The fragment of ours that has it.
    """

    option: str
    wanted: str
    found: str
    purpose: Purpose
    why: str
    mends: str

    @property
    def met(self) -> bool:
        """Whether it has that value."""
        return self.wanted == self.found


def find(words: str) -> Path | None:
    """Return the .config that `kernel check` is asked about, or that of a tree which is not built yet."""
    path = Path(words).expanduser()
    if holds(path.is_file) and _is_config(path):
        return path
    config = path / ".config"
    return config if holds(config.is_file) and not holds((path / "vmlinux").is_file) else None


def lines(path: Path) -> tuple[Line, ...]:
    """Return each option that matters, as a .config has it.

    Args:
        path: The .config, packed by gzip or not; or the directory that it is in.

    Raises:
        UsageError: it is none.
    """
    file = path / ".config" if holds(path.is_dir) else path
    if not holds(file.is_file):
        raise UsageError(f"there is no configuration {file}", hint="give a .config, or a tree that has one")
    configuration = Configuration(str(file), bases.options(file))
    return tuple(_line(need, configuration) for need in ALL)


def _line(need: Need, configuration: Configuration) -> Line:
    return Line(
        option=f"CONFIG_{need.option}",
        wanted="n" if need.off else "y",
        found=configuration.value(need.option),
        purpose=need.purpose,
        why=need.why,
        mends=need.mends,
    )


def _is_config(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1 << 16)
    return start.startswith(b"\x1f\x8b") or b"\nCONFIG_" in start or b"is not set\n" in start
