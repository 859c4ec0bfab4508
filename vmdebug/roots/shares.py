"""Directories of this machine that a guest gets: `--share DIR[:GUESTDIR][:ro|rw|overlay]`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

from vmdebug.errors import UsageError
from vmdebug.guest import Share
from vmdebug.guest_options import GuestOptions, ShareMode, split_share
from vmdebug.paths import absolute, or_false
from vmdebug.roots import virtiofsd
from vmdebug.roots.virtiofsd import Supports
from vmdebug.spelling import option

_TAG = "vmdebug-share{}"

_SYSTEM = ("/dev", "/proc", "/sys", "/run/vmdebug")
"""Directories of the guest that nothing may hide, with all below them."""

_OF_INIT = ("/run",)
"""Directories that vmdebug's init and what it has started use."""

_OF_INITRAMFS = ("/bin", "/etc")
"""The same in a guest without a root file system."""


def resolve(options: GuestOptions, supports: Supports) -> tuple[Share, ...]:
    """Return the directories that the options name.

    Args:
        options: The options of the guest.
        supports: Tells whether its kernel has an option.

    Raises:
        UsageError: there is no such directory, two have the same place, or the guest needs what is there.
    """
    hidden = _OF_INIT if options.root is not None else (*_OF_INIT, *_OF_INITRAMFS)
    shares = tuple(_share(words, number, supports, hidden) for number, words in enumerate(options.share))
    places = [share.mount_point for share in shares]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise UsageError(
            f"{option('share')}: two directories have the place {twice}",
            hint="give one another place: DIR:GUESTDIR",
        )
    return shares


def for_systemd(shares: Sequence[Share]) -> tuple[str, ...]:
    """Return the kernel parameters that make systemd 254 or newer mount directories.

    See systemd.mount-extra= in systemd-fstab-generator(8).

    Raises:
        UsageError: a directory cannot be mounted in this way.
    """
    for share in shares:
        if share.mode == "overlay" or any(char in share.mount_point for char in ": \t"):
            raise UsageError(
                f"{option('share')}: in a NixOS VM systemd mounts {share.directory}, by a kernel parameter:"
                " there is no overlay, and no blank or colon in the place",
                hint=f"give another place, and ro or rw: {share.directory}:/mnt:rw",
            )
    plain = "trans=virtio,version=9p2000.L,msize=262144,cache=mmap"
    return tuple(
        f"systemd.mount-extra={each.tag}:{each.mount_point}:9p:{each.mode},{plain}" for each in shares
    )


def note(shares: Sequence[Share]) -> tuple[str, ...]:
    """Return what the guest gets, and what it then cannot do, in words."""
    hows = {"ro": "read-only", "rw": "the guest writes to it", "overlay": "its writes are discarded"}
    said = [
        f"{share.directory} at {share.mount_point} over {share.transport}: {hows[share.mode]}"
        for share in shares
    ]
    if not shares:
        return ()
    until = " while they are mounted" if all(share.transport == "9p" for share in shares) else ""
    return (
        *said,
        f"with them the guest cannot be saved or cloned{until}; `vmdebug cp` copies files instead",
    )


def _share(words: str, number: int, supports: Supports, hidden: Sequence[str]) -> Share:
    where, place, mode = split_share(words)
    path = absolute(where)
    if not or_false(path.is_dir):
        raise UsageError(
            f"{option('share', words)}: there is no directory {path}",
            hint="write DIR, DIR:GUESTDIR or DIR:GUESTDIR:ro|rw|overlay",
        )
    if not os.access(path, os.R_OK | os.X_OK):
        raise UsageError(f"{option('share', words)}: you cannot read {path}", hint="check its permissions")
    # normpath keeps two slashes at the start.
    mount_point = f"/{os.path.normpath(place or path).lstrip('/')}"
    if mount_point == "/":
        raise UsageError(
            f"{option('share', words)}: the guest cannot have it at /",
            hint=f"{option('root', where)} makes it the root; or give a place: {where}:/mnt",
        )
    if mount_point in hidden or any(f"{mount_point}/".startswith(f"{each}/") for each in _SYSTEM):
        raise UsageError(
            f"{option('share', words)}: the guest cannot have it at {mount_point}: it needs what is there",
            hint=f"give another place: {where}:/mnt",
        )
    chosen = cast("ShareMode", mode or "ro")
    return Share(
        directory=path,
        mount_point=mount_point,
        mode=chosen,
        transport=virtiofsd.choose(supports, path, read_only=chosen != "rw"),
        tag=_TAG.format(number),
    )
