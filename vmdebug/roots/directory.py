"""Root directories: this machine's own, and those for chroot(1)."""

from __future__ import annotations

import os
from pathlib import Path

from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import AUTO_INIT, Root
from vmdebug.guest_options import HOST, NO_INIT, GuestOptions
from vmdebug.paths import or_false
from vmdebug.progress import Report
from vmdebug.roots import packed
from vmdebug.roots.packed import Supports
from vmdebug.spelling import option

INITS = ("sbin/init", "etc/init", "bin/init", "lib/systemd/systemd", "init")
"""Where a root may have its init; the kernel tries the first three (kernel_init in init/main.c)."""

_LIVE = (
    "the guest sees changes of the directory only in what it has not read yet; it cannot be saved or cloned"
)


def host(options: GuestOptions) -> Root:
    """Return this machine's root directory.

    Raises:
        UsageError: an option does not apply to it.
    """
    _refuse_image_options(options)
    if options.root_image == "always":
        raise UsageError(
            f"{option('root', HOST)} cannot be packed as an image",
            hint="give a directory with a smaller root, or debian:SUITE",
        )
    return Root(
        words=HOST,
        location=Path("/"),
        file_system="9p",
        init=options.init or NO_INIT,
        note=f"this machine's own root directory, read-only, over 9p; {_LIVE}",
    )


def resolve(
    path: Path, options: GuestOptions, *, supports: Supports, report: Report, deadline: Deadline
) -> Root:
    """Return a directory as a root: over 9p, or packed as an image if the user wants that.

    Raises:
        UsageError: it is not a root directory, or an option does not apply to it.
        HostError: a program or disk space is missing.
        BuildError: the image cannot be made.
        DeadlineError: making the image took too long.
    """
    _refuse_image_options(options)
    init = find_init(path)
    if not (init or or_false((path / "bin/sh").exists) or os.path.lexists(path / "bin/sh")):
        raise UsageError(
            f"{path} is not a root directory: it has neither bin/sh nor an init",
            hint="give the top of a root for chroot, as mmdebstrap and debootstrap make it",
        )
    systemd = options.init is None and init.endswith("systemd")
    chosen = options.init or (AUTO_INIT if init else NO_INIT)
    if options.root_image == "always":
        image = packed.of_directory(path, supports=supports, report=report, deadline=deadline)
        return packed.root(image, words=str(path), init=chosen, systemd=systemd)
    return Root(
        words=str(path),
        location=path,
        file_system="9p",
        init=chosen,
        systemd=systemd,
        note=f"{path}, read-only, over 9p; {_LIVE}: {option('root_image', 'always')} packs it as an image",
    )


def find_init(top: Path) -> str:
    """Return the path of the init in a root directory, with its links resolved; "" if there is none."""
    for name in INITS:
        path = top / name
        for _ in range(8):
            if not path.is_symlink():
                break
            target = path.readlink()
            path = top / target.relative_to("/") if target.is_absolute() else path.parent / target
        if or_false(path.is_file):
            return f"/{os.path.normpath(path.relative_to(top))}"
    return ""


def _refuse_image_options(options: GuestOptions) -> None:
    for name in ("root_dev", "keep"):
        if value := getattr(options, name):
            raise UsageError(
                f"{option(name, value)} is for disk images, and {option('root', options.root)} is not one",
                hint="leave it out: the guest never writes to the directory",
            )
