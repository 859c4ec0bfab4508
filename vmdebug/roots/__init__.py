"""Finds or makes a guest's root file system; each kind resolves to a frozen `Root`.

==================  =====================================================================
`--root`            is
==================  =====================================================================
`host`              this machine's root directory, shared, or its programs as an image
a directory         a root for chroot(1), shared, or packed as an image
a file              a disk image, raw or qcow2: a file system, or partitions
`debian:SUITE`      a Debian that mmdebstrap makes once, packed as an image
a container image   an OCI layout or archive, what `docker save` writes, or `docker://NAME`
==================  =====================================================================

The guest writes to a layer in its memory; with `--keep`, to the disk image.
"""

from __future__ import annotations

from vmdebug.errors import UsageError
from vmdebug.guest import Root
from vmdebug.guest_options import HOST, GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.roots import container, directory, image, oci, refusal, suite
from vmdebug.roots.packed import Making
from vmdebug.spelling import option

__all__ = ["Making", "resolve"]


def resolve(options: GuestOptions, making: Making) -> Root | None:
    """Return the root file system that the options name; None if the guest has only its initramfs.

    Args:
        options: The options of the guest.
        making: For which guest a root is made.

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
        return directory.host(options, making)
    path = absolute(root)
    there = or_false(path.exists)
    if oci.is_named(root) or (there and container.is_image(path)):
        return oci.resolve(root, options, making)
    name, colon, release = root.partition(":")
    if colon and "/" not in name and not there:
        return suite.resolve(name, release, options, making)
    if or_false(path.is_dir):
        return directory.resolve(path, options, making)
    if not there:
        raise UsageError(
            f"{option('root', root)}: {path} does not exist",
            hint=f"give `{HOST}`, a directory, a disk image, a container image, or debian:bookworm",
        )
    if container.is_archive(path):
        raise UsageError(
            f"{option('root', root)}: {path} is a tar archive, and not a whole container image: it has"
            " neither oci-layout nor manifest.json",
            hint="save a damaged image again; unpack the archive of a root (`docker export`) as root, and"
            " give the directory",
        )
    return image.resolve(path, options, deadline=making.deadline)


def _refuse_alone(options: GuestOptions) -> None:
    """Refuse options about a root file system if the guest has none."""
    refusal.refuse(
        options,
        ("root_dev", "root_image", "init", "login", "keep"),
        f"needs a root file system, and {option('root')} is not given",
        hint=f"add {option('root', 'X')}",
    )
