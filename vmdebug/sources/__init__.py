"""Where a guest comes from: each source resolves to one LaunchSpec."""

from __future__ import annotations

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import GuestOptions, LaunchSpec
from vmdebug.progress import Report
from vmdebug.sources.naming import parse

__all__ = ["parse", "resolve"]


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
    checked = _checked(options)
    guest = parse(checked.source)
    match guest.kind:
        case "flake":
            from vmdebug.sources import flake  # noqa: PLC0415 - each guest needs one source

            return flake.resolve(guest, checked, report=report, deadline=deadline)
        case "runner":
            from vmdebug.sources import runner  # noqa: PLC0415 - as above

            return runner.resolve(guest, checked, report=report, deadline=deadline)
        case "tree" | "image" | "builtin":
            from vmdebug.sources import own  # noqa: PLC0415 - as above

            return own.resolve(guest, checked, report=report, deadline=deadline)


def _checked(options: GuestOptions) -> GuestOptions:
    """Hold the API's options to the limits that the types of `GuestOptions` state."""
    try:
        return msgspec.convert(msgspec.structs.asdict(options), GuestOptions)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        option = place.rstrip("`").replace("_", "-")
        raise UsageError(f"--{option} cannot be right: {what}", hint="see `vmdebug start --help`") from error
