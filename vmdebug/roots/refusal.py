"""Refuses options that do not apply to a root file system."""

from __future__ import annotations

from vmdebug.errors import UsageError
from vmdebug.guest_options import GuestOptions
from vmdebug.spelling import option

OF_DISK_IMAGES = ("root_dev", "keep")
"""The options that apply only to disk images."""

_DEFAULTS = GuestOptions()


def refuse(options: GuestOptions, names: tuple[str, ...], why: str, *, hint: str) -> None:
    """Check that options are not given.

    Args:
        options: The options of the guest.
        names: Those that do not apply.
        why: What the message says after the option and its value.
        hint: What to do instead.

    Raises:
        UsageError: one is given.
    """
    for name in names:
        # Not whether it is true: `root_dev` 0 is the whole disk.
        if (value := getattr(options, name)) != getattr(_DEFAULTS, name):
            raise UsageError(f"{option(name, value)} {why}", hint=hint)
