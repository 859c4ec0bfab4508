"""Where a guest comes from: each source resolves to one LaunchSpec."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vmdebug import guest as guests
from vmdebug import spelling
from vmdebug.deadline import Deadline
from vmdebug.guest import Guest, GuestOptions, Kernel, LaunchSpec
from vmdebug.progress import Report
from vmdebug.sources.naming import anchored, parse

if TYPE_CHECKING:
    from vmdebug.sources.kernel_scripts.prepare import Scripts

__all__ = ["gdb_scripts", "installed_kernel", "parse", "resolve"]


def resolve(options: GuestOptions, *, report: Report, deadline: Deadline) -> LaunchSpec:
    """Return everything that is needed to start a guest.

    Args:
        options: The guest and what its user says about it; `vmdebug.config.lookup` makes one from GUEST.
        report: Told about long steps.
        deadline: When building is given up.

    Raises:
        UsageError: GUEST or an option cannot be right.
        HostError: something is missing on this machine.
        BuildError: nix failed.
        MismatchError: symbols and kernel are of different builds.
        DeadlineError: it took too long.
    """
    checked = guests.checked(options)
    with spelling.spelled(checked.speller()):
        spec = _resolve(parse(checked.source), checked, report, deadline)
    from vmdebug.sources.kernel_scripts import prepare  # noqa: PLC0415 - `parse` alone needs none of it

    filled = prepare.filled(spec, checked, report=report, deadline=deadline)
    return msgspec.structs.replace(filled, asked=anchored(checked))


def gdb_scripts(
    options: GuestOptions, *, source: Path | None = None, report: Report, deadline: Deadline
) -> Scripts:
    """Return the GDB scripts of a guest's kernel, made in the user's cache if they do not load as they stand.

    Args:
        options: The guest and what its user says about it.
        source: The kernel's source, or the tree that it was built in, where none is found. A Nix
            kernel's is got by nix.
        report: Told about long steps.
        deadline: When making is given up.

    Raises:
        UsageError: GUEST or an option cannot be right; there is nothing to make them of; or the
            kernel's debugging information is missing or reduced.
        MismatchError: what there is belongs to another kernel.
        HostError: something is missing on this machine.
        BuildError: make or nix failed.
        DeadlineError: it took too long.
    """
    from vmdebug.sources.kernel_scripts import prepare  # noqa: PLC0415 - only this needs them
    from vmdebug.sources.nixos import fetch_source  # noqa: PLC0415 - only this needs them

    checked = guests.checked(options)
    guest = parse(checked.source)
    with spelling.spelled(checked.speller()):
        spec = _resolve(guest, checked, report, deadline)
    fetch = fetch_source.fetch(spec.kernel, guest, checked, report=report, deadline=deadline)
    return prepare.make(spec.kernel, source=source, fetch=fetch, report=report, deadline=deadline)


def installed_kernel(options: GuestOptions, *, report: Report, deadline: Deadline) -> Kernel:
    """Return the kernel that a guest has on a machine of its own.

    That is a NixOS system's, and not the kernel of its VM; every other guest has but one.

    Args:
        options: The guest and what its user says about it.
        report: Told about long steps.
        deadline: When building is given up.

    Raises:
        UsageError: GUEST or an option cannot be right.
        HostError: something is missing on this machine.
        BuildError: nix failed.
        MismatchError: symbols and kernel are of different builds.
        DeadlineError: it took too long.
    """
    checked = guests.checked(options)
    guest = parse(checked.source)
    if guest.kind != "flake" or checked.kernel is not None or checked.vmlinux is not None:
        return resolve(checked, report=report, deadline=deadline).kernel
    from vmdebug.sources.nixos import rebuild  # noqa: PLC0415 - as above

    target = rebuild.target_of(guest, checked.nix_args)
    return rebuild.build(target, checked, report=report, deadline=deadline).kernel


def _resolve(guest: Guest, checked: GuestOptions, report: Report, deadline: Deadline) -> LaunchSpec:
    match guest.kind:
        case "flake":
            from vmdebug.sources.nixos import flake  # noqa: PLC0415 - each guest needs one source

            return flake.resolve(guest, checked, report=report, deadline=deadline)
        case "runner":
            from vmdebug.sources.nixos import runner  # noqa: PLC0415 - as above

            return runner.resolve(guest, checked, report=report, deadline=deadline)
        case "tree" | "image" | "builtin":
            from vmdebug.sources import own  # noqa: PLC0415 - as above

            return own.resolve(guest, checked, report=report, deadline=deadline)
