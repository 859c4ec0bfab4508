"""Finds the plugin that a QEMU can load: compiles it at its first use, and tries it with that QEMU once."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.filecache import cached
from vmdebug.paths import of_user
from vmdebug.progress import Report, silent
from vmdebug.trace.plugin import binary, wire

PROBE_SECONDS = 20.0
"""How long QEMU may take to load the plugin; usually it takes 0.1 s."""


class Loadable(msgspec.Struct, frozen=True, kw_only=True):
    """The plugin that a QEMU can load.

    Args:
        version: The version of the plugin API that it is built for; 0 if this QEMU accepts none.
        features: What the plugin can read there; see `wire.REGISTERS`.
    """

    version: int = 0
    features: int = 0

    @property
    def reads(self) -> bool:
        """Whether it can read registers and memory; otherwise it only counts."""
        wanted = wire.REGISTERS | wire.MEMORY
        return self.features & wanted == wanted


def loadable(qemu: Path, *, report: Report = silent, deadline: Deadline) -> Loadable:
    """Return which plugin a QEMU can load. Try them once, and again when the QEMU's file has changed.

    Args:
        qemu: The emulator.
        report: Called before the compiler runs.
        deadline: When the compiler or QEMU is killed.

    Raises:
        HostError: there is no C compiler, or QEMU does not exist.
        DeadlineError: it took too long.
    """
    known = binary.program(binary.VERSIONS[0]).digest()[:16]
    try:
        what = f"trace-plugin {known}"
        return cached(qemu, what, Loadable, lambda: _tried(qemu, report, deadline))
    except OSError as error:
        raise HostError(f"cannot read {qemu}: {error.strerror}") from error


def built(version: int, *, report: Report = silent, deadline: Deadline) -> Path:
    """Return the plugin's binary for a version of the plugin API. Compile it unless the cache has it.

    Raises:
        HostError: there is no C compiler, or the cache cannot be written.
        DeadlineError: the compiler took too long.
    """
    import platformdirs  # noqa: PLC0415 - slow to import

    found = binary.shipped(platform.machine(), version)
    if found.is_file():
        return found
    into = of_user(platformdirs.user_cache_dir, "XDG_CACHE_HOME") / "plugin"
    return binary.compile_into(into, version, report=report, deadline=deadline)


def _tried(qemu: Path, report: Report, deadline: Deadline) -> Loadable:
    for version in binary.VERSIONS:
        plugin = built(version, report=report, deadline=deadline)
        done = process.run(probe_argv(qemu, plugin), deadline=deadline.at_most(PROBE_SECONDS), check=False)
        for line in done.stdout.splitlines():
            fields = line.split()
            if fields[:1] == ["vmdebug-plugin"]:
                return Loadable(version=int(fields[1]), features=int(fields[2]))
    return Loadable()


def probe_argv(qemu: Path, plugin: Path) -> tuple[str, ...]:
    """Return the command that makes the plugin print its features and end QEMU."""
    return (str(qemu), "-plugin", f"{plugin},probe=on", "-machine", "none", "-display", "none")
