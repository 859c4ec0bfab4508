"""Finds or makes a guest's root file system; each kind resolves to a frozen `Root`.

==================  =====================================================================
`--root`            is
==================  =====================================================================
`host`              this machine's root directory, over 9p
a directory         a root for chroot(1), over 9p, or packed as an image
a file              a disk image, raw or qcow2: a file system, or partitions
`debian:SUITE`      a Debian that mmdebstrap makes once, packed as an image
==================  =====================================================================

The guest writes to a layer in its memory; with `--keep`, to the disk image.
"""

from __future__ import annotations

from pathlib import Path

from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import Root
from vmdebug.guest_options import HOST, GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.progress import Report
from vmdebug.roots import directory, image, suite
from vmdebug.roots.packed import Supports
from vmdebug.spelling import option

__all__ = ["Supports", "resolve"]


def resolve(options: GuestOptions, *, supports: Supports, report: Report, deadline: Deadline) -> Root | None:
    """Return the root file system that the options name; None if the guest has only its initramfs.

    Args:
        options: The options of the guest.
        supports: Tells whether its kernel has an option.
        report: Called with each long step.
        deadline: When to give up making an image.

    Raises:
        UsageError: there is no such root, or an option does not apply to it.
        HostError: a program or disk space is missing.
        BuildError: a program failed.
        DeadlineError: it took too long.
    """
    root = options.root
    if root is None:
        _refuse_alone(options)
        return None
    if root == HOST:
        return directory.host(options)
    name, colon, release = root.partition(":")
    if colon and "/" not in name and not or_false(Path(root).exists):
        return suite.resolve(name, release, options, supports=supports, report=report, deadline=deadline)
    path = absolute(root)
    if or_false(path.is_dir):
        return directory.resolve(path, options, supports=supports, report=report, deadline=deadline)
    if not or_false(path.exists):
        raise UsageError(
            f"{option('root', root)}: {path} does not exist",
            hint=f"give `{HOST}`, a directory, a disk image, or debian:SUITE (debian:bookworm)",
        )
    return image.resolve(path, options, deadline=deadline)


def _refuse_alone(options: GuestOptions) -> None:
    """Refuse options about a root file system if the guest has none."""
    for name in ("root_dev", "init", "keep"):
        if value := getattr(options, name):
            raise UsageError(
                f"{option(name, value)} needs a root file system, and {option('root')} is not given",
                hint=f"add {option('root', 'X')}",
            )
