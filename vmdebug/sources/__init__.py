"""Where guests come from: each source resolves GUEST to a LaunchSpec."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vmdebug import guest_options, spelling
from vmdebug.deadline import Deadline
from vmdebug.guest import Guest, Kernel, LaunchSpec
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Report
from vmdebug.sources.naming import absolute_paths, parse

if TYPE_CHECKING:
    from vmdebug.sources.kernel_scripts.prepare import Scripts

__all__ = ["gdb_scripts", "installed_kernel", "parse", "resolve"]


def resolve(
    options: GuestOptions, *, report: Report, deadline: Deadline, dry_run: bool = False
) -> LaunchSpec:
    """Return what is needed to start a guest.

    Args:
        options: The guest and its options, from `vmdebug.config.lookup`.
        report: Receives the progress of long steps.
        deadline: When to stop building.
        dry_run: Whether to make no root file system: the guest will not be started.

    Raises:
        UsageError: GUEST or an option is invalid.
        HostError: this machine lacks something.
        BuildError: nix failed.
        MismatchError: symbols and kernel are from different builds.
        DeadlineError: it took too long.
    """
    checked = guest_options.checked(options)
    with spelling.spelled(checked.speller()):
        spec = _resolve(parse(checked.source), checked, report, deadline, dry_run=dry_run)
        if checked.debuginfod:
            from vmdebug.sources.kernels import debuginfod  # noqa: PLC0415 - rarely needed

            spec = debuginfod.with_symbols(spec, report=report, deadline=deadline)
        if spec.kernel.vmlinux is None:
            from vmdebug.sources.kernels import own_symbols  # noqa: PLC0415 - rarely needed

            spec = own_symbols.with_symbols(spec, report=report)
    from vmdebug.sources.kernel_scripts import prepare  # noqa: PLC0415 - not needed by `parse`

    filled = prepare.with_scripts(spec, checked, report=report, deadline=deadline)
    return msgspec.structs.replace(filled, asked=absolute_paths(checked))


def gdb_scripts(
    options: GuestOptions, *, source: Path | None = None, report: Report, deadline: Deadline
) -> Scripts:
    """Return the GDB scripts of a guest's kernel. If GDB cannot load them, complete them in the user's cache.

    Args:
        options: The guest and its options.
        source: The kernel's source, or the tree that it was built in; None searches for it, and asks nix for
            the source of a Nix kernel.
        report: Receives the progress of long steps.
        deadline: When to stop.

    Raises:
        UsageError: GUEST or an option is invalid, the scripts' source is missing, or the kernel's debugging
            information is missing or reduced.
        MismatchError: the scripts belong to another kernel.
        HostError: this machine lacks something.
        BuildError: make or nix failed.
        DeadlineError: it took too long.
    """
    from vmdebug.sources.kernel_scripts import prepare  # noqa: PLC0415 - needed only here
    from vmdebug.sources.nixos import fetch_source  # noqa: PLC0415 - needed only here

    checked = guest_options.checked(options)
    guest = parse(checked.source)
    with spelling.spelled(checked.speller()):
        spec = _resolve(guest, checked, report, deadline)
    fetch = fetch_source.fetch(spec.kernel, guest, checked, report=report, deadline=deadline)
    return prepare.make(spec.kernel, source=source, fetch=fetch, report=report, deadline=deadline)


def installed_kernel(options: GuestOptions, *, report: Report, deadline: Deadline) -> Kernel:
    """Return the kernel that a guest runs on a physical machine.

    For a NixOS system this is the system's kernel, not that of its VM; other guests have only one kernel.

    Args:
        options: The guest and its options.
        report: Receives the progress of long steps.
        deadline: When to stop building.

    Raises:
        UsageError: GUEST or an option is invalid.
        HostError: this machine lacks something.
        BuildError: nix failed.
        MismatchError: symbols and kernel are from different builds.
        DeadlineError: it took too long.
    """
    checked = guest_options.checked(options)
    guest = parse(checked.source)
    if guest.kind != "flake" or checked.kernel is not None or checked.vmlinux is not None:
        return resolve(checked, report=report, deadline=deadline).kernel
    from vmdebug.sources.nixos import rebuild  # noqa: PLC0415 - as above

    target = rebuild.target_of(guest, checked.nix_args)
    return rebuild.build(target, checked, report=report, deadline=deadline).kernel


def _resolve(
    guest: Guest, checked: GuestOptions, report: Report, deadline: Deadline, *, dry_run: bool = False
) -> LaunchSpec:
    match guest.kind:
        case "flake":
            from vmdebug.sources.nixos import flake  # noqa: PLC0415 - each guest needs only one source

            return flake.resolve(guest, checked, report=report, deadline=deadline)
        case "runner":
            from vmdebug.sources.nixos import runner  # noqa: PLC0415 - as above

            return runner.resolve(guest, checked, report=report, deadline=deadline)
        case "tree" | "image" | "builtin":
            from vmdebug.sources import own  # noqa: PLC0415 - as above

            return own.resolve(guest, checked, report=report, deadline=deadline, dry_run=dry_run)
