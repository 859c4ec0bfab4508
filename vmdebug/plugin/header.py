"""What the tests run on, in a few lines above them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.plugin import settings
from vmdebug.plugin.settings import Target, Wish
from vmdebug.progress import silent
from vmdebug.vm import planning
from vmdebug.vm.planning import Means

if TYPE_CHECKING:
    from vmdebug.guest import LaunchSpec
    from vmdebug.plugin.hooks import Run

FIXTURE = "vmdebug_guest"
"""The fixture that every other one stands on."""

_PROGRAM_SECONDS = 20.0
_MEANS_SECONDS = 300.0
_ID_CHARACTERS = 12


def lines(run: Run, items: Iterable[pytest.Item]) -> list[str]:
    """Return the header of a run.

    Args:
        run: The run.
        items: Its tests; where none of them has a guest, nothing is said.
    """
    using = [item for item in items if FIXTURE in getattr(item, "fixturenames", ())]
    try:
        wanted = {target: name for item in using for name, target in run.targets(item).items()}
    except VmdebugError:
        return []  # a marker that cannot be right; pytest is about to end by it
    told: dict[str, None] = {}
    programs: dict[str, None] = {}
    for target, name in wanted.items():
        try:
            spec = run.guests.spec(settings.options(run.settings, Wish(), target, halted=False))
            means = planning.means(spec, report=silent, deadline=Deadline.after(_MEANS_SECONDS))
        except VmdebugError as error:
            # The tests that want it fail by it; here it is only named.
            told.setdefault(f"{_named(target)}: {error.message}")
            continue
        programs.setdefault(_programs(means))
        told.setdefault(_kernel(spec) + (f" [{name}]" if name else ""))
    return [f"vmdebug: {each}" for each in (*programs, *told)]


def _programs(means: Means) -> str:
    accel = f"{means.choice.accel} ({means.choice.reason})"
    gdb = shutil.which("gdb")
    return f"{_version('QEMU', str(means.qemu))}, {accel}, {_version('GDB', gdb) if gdb else 'no GDB'}"


def _kernel(spec: LaunchSpec) -> str:
    kernel = spec.kernel
    build_id = f"build-id {kernel.build_id[:_ID_CHARACTERS]}" if kernel.build_id else "no build-id"
    symbols = "" if kernel.vmlinux is not None else ", no symbols"
    return f"{spec.guest}: Linux {kernel.release or 'of unknown release'}, {build_id}{symbols}"


def _named(target: Target) -> str:
    words = [each.words for each in (target.guest, target.kernel) if each is not None]
    return ", ".join(words) or "the guest"


def _version(name: str, program: str) -> str:
    try:
        said = process.run([program, "--version"], deadline=Deadline.after(_PROGRAM_SECONDS)).stdout
    except VmdebugError as error:
        return f"{name}: {error.message}"
    first = said.partition("\n")[0]
    # QEMU puts its package behind it, in brackets; GDB before it.
    found = re.search(r"version (\d[\w.]*)", first) or re.search(r"(\d[\w.]*)$", first)
    return f"{name} {found[1] if found else 'of unknown version'}"
