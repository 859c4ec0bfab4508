"""Root directories: this machine's own, and those for chroot(1)."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from pathlib import Path

import msgspec

from vmdebug import cache
from vmdebug.errors import UsageError
from vmdebug.guest import AUTO_INIT, Root
from vmdebug.guest_options import HOST, NO_INIT, GuestOptions
from vmdebug.paths import or_false
from vmdebug.roots import packed, refusal, virtiofsd
from vmdebug.roots.packed import Making
from vmdebug.spelling import option

INITS = ("sbin/init", "etc/init", "bin/init", "lib/systemd/systemd", "init")
"""Where a root may have its init; the kernel tries the first three (kernel_init in init/main.c)."""

_LIVE = (
    "the guest sees changes of the directory only in what it has not read yet; it cannot be saved or cloned"
)

_NOT_PROGRAMS = (
    "tmp",
    "var/tmp",
    "var/cache",
    "var/log",
    "run",
    "proc",
    "sys",
    "dev",
    "home",
    "root",
    "boot",
)
"""What an image of this machine's root leaves out, besides other file systems."""


def host(options: GuestOptions, making: Making) -> Root:
    """Return this machine's root directory, or an image of its programs.

    Raises:
        UsageError: an option does not apply to it.
        HostError: a program or disk space is missing.
        BuildError: the image cannot be made.
        DeadlineError: making the image took too long.
    """
    _refuse_image_options(options)
    init = options.init or NO_INIT
    if options.root_image == "always":
        left_out = _not_on_image()
        packing = packed.of_directory(Path("/"), making, left_out)
        root = packed.image_root(*packing, words=HOST, init=init, systemd=False)
        without = f"without {', '.join(f'/{each}' for each in _NOT_PROGRAMS)}, and other file systems"
        return msgspec.structs.replace(root, note=f"{root.note}; {without}")
    file_system = virtiofsd.choose(making.supports, Path("/"), read_only=True)
    return Root(
        words=HOST,
        location=Path("/"),
        file_system=file_system,
        init=init,
        note=f"this machine's own root directory, read-only, over {file_system}; {_LIVE}:"
        f" {option('root_image', 'always')} packs its programs as an image",
    )


def resolve(path: Path, options: GuestOptions, making: Making) -> Root:
    """Return a directory as a root: shared, or packed as an image if the user wants that.

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
        packing = packed.of_directory(path, making)
        return packed.image_root(*packing, words=str(path), init=chosen, systemd=systemd)
    file_system = virtiofsd.choose(making.supports, path, read_only=True)
    how = option("root_image", "always")
    return Root(
        words=str(path),
        location=path,
        file_system=file_system,
        init=chosen,
        systemd=systemd,
        note=f"{path}, read-only, over {file_system}; {_LIVE}: {how} packs it as an image",
    )


def _not_on_image() -> tuple[str, ...]:
    """Return what an image of this machine's root leaves out, as paths below `/`.

    These are other file systems, what is no program, and, for other users than root, what they cannot read.
    """
    mounted = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    others = {_unescaped(place).lstrip("/") for place in mounted} - {""}
    left_out = {*_NOT_PROGRAMS, *others, str(cache.directory("root").parent).lstrip("/")}
    if os.geteuid() != 0:
        left_out |= set(_unreadable(left_out))
    return tuple(sorted(path for path in left_out if os.path.lexists(f"/{path}")))


def _unescaped(place: str) -> str:
    """Return a path of /proc/self/mountinfo, in which blanks are octal numbers; see proc(5)."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), place)


def _unreadable(left_out: Container[str]) -> Iterator[str]:
    for top, below, files in os.walk("/"):
        start = top.lstrip("/") and f"{top.lstrip('/')}/"
        for name in files:
            path = Path(f"/{start}{name}")
            if not path.is_symlink() and not os.access(path, os.R_OK):
                yield f"{start}{name}"
        closed = {name for name in below if not os.access(f"/{start}{name}", os.R_OK | os.X_OK)}
        yield from (f"{start}{name}" for name in closed)
        below[:] = [name for name in below if name not in closed and f"{start}{name}" not in left_out]


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
    refusal.refuse(
        options,
        refusal.OF_DISK_IMAGES,
        f"is for disk images, and {option('root', options.root)} is not one",
        hint="leave it out: the guest never writes to the directory",
    )
