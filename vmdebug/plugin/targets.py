"""What tests run on: the guests and kernels of a test, and the options of its guest."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vmdebug import config as toml
from vmdebug.guest_options import HOST, NO_MODULES, GuestOptions, changed
from vmdebug.network import NONE
from vmdebug.paths import absolute, or_false
from vmdebug.plugin import markers
from vmdebug.plugin.markers import MarkedTest, Marker
from vmdebug.plugin.settings import Named, Settings

SEGMENT = "segment=test"
"""The segment of the fixture `sessions`; each test has its own."""


class Target(msgspec.Struct, frozen=True):
    """What a test runs on: one combination of a guest and a kernel.

    Args:
        guest: GUEST; None for the default of vmdebug.toml, or else `builtin`.
        kernel: Its kernel; None for the guest's own.
    """

    guest: Named | None = None
    kernel: Named | None = None


def of(settings: Settings, test: MarkedTest) -> dict[str, Target]:
    """Return the targets of a test, each by the id in the test's name; "" if there is only one.

    Args:
        settings: The settings of the run.
        test: The test; its marker overrides the settings.
    """
    here = test.path.parent
    guests = _several(test.marker.guest, here) or settings.guests or (None,)
    kernels = _several(test.marker.kernel, here) or settings.kernels or (None,)
    guest_ids, kernel_ids = _ids(guests), _ids(kernels)
    found: dict[str, Target] = {}
    for (guest, first), (kernel, second) in itertools.product(
        zip(guests, guest_ids, strict=True), zip(kernels, kernel_ids, strict=True)
    ):
        name = "-".join(part for part in (first, second) if part)
        found[_free(name, found)] = Target(guest, kernel)
    return found


def _free(name: str, taken: Collection[str]) -> str:
    """Return a name for a target: the guests a, a-b with the kernels b-c, c would have a-b-c twice."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def options(
    settings: Settings,
    marker: Marker,
    target: Target,
    *,
    halted: bool,
    together: bool = False,
    where: Path | None = None,
) -> GuestOptions:
    """Return the options of a test's guest.

    Args:
        settings: The settings of the run.
        marker: The marker of the test.
        target: The guest and its kernel.
        halted: Whether the guest stops at the reset vector.
        together: Whether the test has several guests, which are on one segment.
        where: Where the marker's relative paths start; None for the current directory.

    Raises:
        UsageError: vmdebug.toml, GUEST or an option is invalid.
        HostError: vmdebug.toml cannot be read.
    """
    if target.guest is None:
        base = toml.lookup(None, settings.root)
    else:
        base = toml.lookup(target.guest.words, target.guest.where)
    changes: dict[str, Any] = {"halt": halted, "tcp": None}
    if target.kernel is not None:
        changes["kernel"] = str(absolute(target.kernel.words, target.kernel.where))
    if settings.coverage is not None:
        changes["trace_ready"] = "yes"
    if marker.append:
        changes["append"] = f"{base.append} {marker.append}".strip()
    here = where or Path.cwd()
    record = settings.record if marker.record is None else marker.record
    overrides = {
        "record": "" if record else None,
        "accel": settings.accel,
        "initrd": None if marker.initrd is None else str(absolute(marker.initrd, here)),
        "modules": _modules(marker, here),
        "module": _module_files(marker, here),
        "load_modules": marker.load_modules,
        "root": None if marker.root is None else toml.absolute_root(marker.root, here),
        "share": _shares(marker, here),
        "net": marker.net,
        "forward": marker.forward,
        "kaslr": marker.kaslr,
        "memory": markers.memory(marker),
        "cpus": marker.cpus,
    }
    changes |= {key: value for key, value in overrides.items() if value is not None}
    wanted = changed(base, changes)
    if together and not any(each.startswith("segment=") for each in wanted.net):
        networks = ("user",) if wanted.forward and not wanted.net else wanted.net
        wanted = changed(wanted, {"net": (*(each for each in networks if each != NONE), SEGMENT)})
    if wanted.root_image == "auto" and _is_directory(wanted.root):
        # A guest cannot be cloned if it has a directory of this machine.
        return changed(wanted, {"root_image": "always"})
    return wanted


def _is_directory(root: str | None) -> bool:
    """Return whether the option `root` is a directory, and not the word for this machine's own root."""
    return root is not None and root != HOST and or_false(absolute(root).is_dir)


def _shares(marker: Marker, here: Path) -> tuple[str, ...] | None:
    words = (marker.share,) if isinstance(marker.share, str) else marker.share
    return tuple(toml.absolute_share(each, here) for each in words) or None


def _several(names: str | Sequence[str] | None, where: Path) -> tuple[Named, ...]:
    if names is None:
        return ()
    every = (names,) if isinstance(names, str) else names
    return tuple(Named(each, where) for each in dict.fromkeys(every))


def _ids(several: Sequence[Named | None]) -> list[str]:
    """Return a short id for each, unique unless their paths have the same parts; "" if there is only one.

    For paths it is the part in which they differ: `linux-a` of `/src/linux-a/vmlinuz`.
    """
    if len(several) == 1:
        return [""]
    parts = [tuple(part for part in each.words.split("/") if part) for each in several if each is not None]
    for depth in range(1, max(map(len, parts)) + 1):
        ids = [part[-min(depth, len(part))] for part in parts]
        if len(set(ids)) == len(ids):
            return ids
    return ["-".join(part) for part in parts]


def _modules(marker: Marker, where: Path) -> str | None:
    special = marker.modules in (None, NO_MODULES)
    return marker.modules if special else str(absolute(str(marker.modules), where))


def _module_files(marker: Marker, where: Path) -> tuple[str, ...] | None:
    named = (marker.module,) if isinstance(marker.module, str) else marker.module
    return tuple(str(absolute(each, where)) for each in named) or None
