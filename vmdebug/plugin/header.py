"""The header lines of a test run: guests, kernels and programs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import VmdebugError
from vmdebug.guest import LaunchSpec
from vmdebug.plugin import targets
from vmdebug.plugin.guests import Guests
from vmdebug.plugin.markers import Marker
from vmdebug.plugin.settings import Settings
from vmdebug.plugin.targets import Target
from vmdebug.progress import silent
from vmdebug.vm import planning
from vmdebug.vm.planning import Resources

_PROGRAM_SECONDS = 20.0
_RESOURCES_SECONDS = 300.0
_ID_CHARACTERS = 12


def lines(wanted: Mapping[Target, str], run: Settings, guests: Guests) -> list[str]:
    """Return the header: QEMU, accelerator and GDB, then a line for each target.

    Args:
        wanted: What the tests run on, each with its id in the tests' names.
        run: The settings of the run.
        guests: Resolves the targets, for the header and for the tests.
    """
    kernels: dict[str, None] = {}
    programs: dict[str, None] = {}
    for target, name in wanted.items():
        try:
            spec = guests.spec(targets.options(run, Marker(), target, halted=False))
            resources = planning.resources(spec, report=silent, deadline=Deadline.after(_RESOURCES_SECONDS))
        except VmdebugError as error:
            # The tests on this target fail with the complete error.
            kernels.setdefault(f"{_named(target)}: {error.message}")
            continue
        programs.setdefault(_programs(resources))
        kernels.setdefault(_kernel(spec) + (f" [{name}]" if name else ""))
    return [f"vmdebug: {each}" for each in (*programs, *kernels)]


def _programs(resources: Resources) -> str:
    accel = f"{resources.choice.accel} ({resources.choice.reason})"
    gdb = shutil.which("gdb")
    return f"{_version('QEMU', str(resources.qemu))}, {accel}, {_version('GDB', gdb) if gdb else 'no GDB'}"


def _kernel(spec: LaunchSpec) -> str:
    kernel = spec.kernel
    build_id = f"build-id {kernel.build_id[:_ID_CHARACTERS]}" if kernel.build_id else "no build-id"
    symbols = "" if kernel.vmlinux is not None else ", no symbols"
    return f"{spec.guest}: Linux {kernel.release or 'of unknown release'}, {build_id}{symbols}"


def _named(target: Target) -> str:
    names = [each.words for each in (target.guest, target.kernel) if each is not None]
    return ", ".join(names) or "the guest"


def _version(name: str, program: str) -> str:
    try:
        output = process.run([program, "--version"], deadline=Deadline.after(_PROGRAM_SECONDS)).stdout
    except VmdebugError as error:
        return f"{name}: {error.message}"
    first = output.partition("\n")[0]
    # QEMU prints the distribution's package in brackets after its version, GDB before it.
    found = re.search(r"version (\d[\w.]*)", first) or re.search(r"(\d[\w.]*)$", first)
    return f"{name} {found[1] if found else 'of unknown version'}"
