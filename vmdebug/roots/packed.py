"""Directories and archives as read-only images in the cache: a guest with one can be saved and cloned."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmdebug import cache, process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.guest import Root
from vmdebug.progress import Report, Step

Supports = Callable[[str], bool | None]
"""Tells whether the guest's kernel has an option, without CONFIG_; None if that is unknown."""

PACK_SECONDS = 1800.0
"""How long packing may take."""

_KEPT = 6
"""Number of most recently used images to keep in the cache."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of read-only images.

    Args:
        name: As mount(8) takes it.
        program: The program that makes one.
        package: Its Debian package.
        option: The kernel's option, without CONFIG_.
    """

    name: str
    program: str
    package: str
    option: str

    def argv(self, directory: Path, image: Path) -> tuple[str, ...]:
        """Return the command that packs a directory.

        The image is not compressed: under TCG, decompression takes longer than reads from the host's disk.
        """
        program = self.find() or self.program
        if self.name == "erofs":
            return (program, str(image), str(directory))
        return (program, str(directory), str(image), "-noI", "-noD", "-noF", "-noX", "-no-progress")

    def find(self) -> str | None:
        """Return the path of the program; None if there is none. A user's PATH may lack /usr/sbin."""
        return shutil.which(self.program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


FORMATS = (
    Format("erofs", "mkfs.erofs", "erofs-utils", "EROFS_FS"),
    Format("squashfs", "mksquashfs", "squashfs-tools", "SQUASHFS"),
)


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the cache.

    Args:
        path: The file.
        format: Its format.
    """

    path: Path
    format: Format


def root(image: Image, *, words: str, init: str, systemd: bool) -> Root:
    """Return an image as a root."""
    size = image.path.stat().st_size / 2**20
    return Root(
        words=words,
        location=image.path,
        file_system=image.format.name,
        format="raw",
        init=init,
        systemd=systemd,
        note=f"{words} as a read-only {image.format.name} image of {size:.0f} MiB, {image.path};"
        " the guest can be saved and cloned",
    )


def of_directory(directory: Path, *, supports: Supports, report: Report, deadline: Deadline) -> Image:
    """Return a directory as an image; pack it, unless the cache has an image of its present state.

    Raises:
        HostError: a program or disk space is missing, or a file cannot be read.
        BuildError: the image cannot be made.
        DeadlineError: it took too long.
    """
    chosen = choose(supports)
    what = f"packing {directory}"
    report(Step(what, note="looking for changes"))
    target = cache.directory("root") / f"{_state(directory)}.{chosen.name}"

    def pack(image: Path) -> None:
        process.run(chosen.argv(directory, image), deadline=deadline.at_most(PACK_SECONDS))

    return make(target, chosen, pack, what=what, report=report, deadline=deadline)


def make(
    target: Path,
    chosen: Format,
    pack: Callable[[Path], None],
    *,
    what: str,
    report: Report,
    deadline: Deadline,
) -> Image:
    """Return an image in the cache; make it unless it exists.

    Args:
        target: The path of the image.
        chosen: Its format.
        pack: Writes the image to the path that is its argument.
        what: The step, for reports.
        report: Called before the image is made.
        deadline: When to stop waiting for another process that is making it.

    Raises:
        VmdebugError: as `pack` does.
    """
    if cache.used(target):
        return Image(target, chosen)
    with cache.lock(target, what, report, deadline):
        if not cache.used(target):
            report(Step(what, note=chosen.name))
            with _temporary(target) as image:
                pack(image)
                with cache.writing(target.parent):
                    image.replace(target)
            cache.keep_newest(target.parent, "*.erofs", _KEPT)
            cache.keep_newest(target.parent, "*.squashfs", _KEPT)
    return Image(target, chosen)


def unpacked(archive: Path, chosen: Format, image: Path, *, deadline: Deadline) -> None:
    """Unpack a tar archive, and pack it as an image. If this user is not root, fakeroot keeps the owners.

    Raises:
        HostError: a program is missing.
        BuildError: it cannot be unpacked or packed.
        DeadlineError: it took too long.
    """
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".unpacked.") as name:
        directory = Path(name, "root")
        directory.mkdir()
        lines = [
            shlex.join(["tar", "-x", "-p", "--numeric-owner", "-f", str(archive), "-C", str(directory)]),
            shlex.join(chosen.argv(directory, image)),
            f"chmod -R u+rwX {shlex.quote(str(directory))}",
        ]
        fake = () if os.geteuid() == 0 else (str(process.find("fakeroot", package="fakeroot")),)
        process.run((*fake, "sh", "-ec", "\n".join(lines)), deadline=deadline.at_most(PACK_SECONDS))


def choose(supports: Supports) -> Format:
    """Return the format that this machine can make and the guest's kernel can read.

    Raises:
        HostError: there is no program to make one.
    """
    installed = [each for each in FORMATS if each.find()]
    readable = [each for each in installed if supports(each.option) is not False]
    if installed:
        # If the kernel can read none of them, the check of its options refuses it later, with their names.
        return (readable or installed)[0]
    raise HostError(
        "no program to pack a root file system is installed:"
        f" none of {', '.join(each.program for each in FORMATS)}",
        hint=f"apt install {FORMATS[0].package}",
    )


def _state(directory: Path) -> str:
    """Return a digest of all names, sizes, modes and times below a directory."""
    digest = hashlib.sha256(os.fsencode(directory))
    try:
        for top, below, files in os.walk(directory, onerror=_raise):
            below.sort()
            for name in sorted([*files, *below]):
                path = f"{top}/{name}"
                status = os.lstat(path)
                facts = (
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                )
                digest.update(os.fsencode(f"{path}\0{facts}\n"))
    except OSError as error:
        raise HostError(
            f"cannot read {error.filename}: {error.strerror}",
            hint="pack the directory as its owner, or as root",
        ) from error
    return digest.hexdigest()[:16]


def _raise(error: OSError) -> None:
    raise error


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`; after the block, remove the file there, if there is one."""
    path = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
