"""Directories and archives as read-only images in the cache, with which a guest can be saved and cloned."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmdebug import cache, locks, process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.guest import Root
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Report, Step
from vmdebug.roots import virtiofsd
from vmdebug.roots.virtiofsd import Supports
from vmdebug.spelling import option


@dataclass(frozen=True, slots=True)
class Making:
    """For which guest a root is made, and how long that may take.

    Args:
        supports: Tells whether its kernel has an option.
        architecture: That of its kernel, as in `Kernel.arch`.
        report: Called with each long step.
        deadline: When to give up.
        dry_run: Whether to make nothing, and only say what would be made.
    """

    supports: Supports
    architecture: str
    report: Report
    deadline: Deadline
    dry_run: bool = False

    def make(self, target: Path, pack: Callable[[Path], None], what: str) -> Path:
        """Return `target`, which `pack` makes, as the function `make` does; a dry run makes nothing."""
        if self.dry_run:
            return target
        return make(target, pack, what=what, report=self.report, deadline=self.deadline)


PACK_SECONDS = 1800.0
"""How long packing may take."""

_TEMPORARY = re.compile(r"\.(.+?\.\w+)\.\d+(?:\.|$)")
"""The name of what `_temporary` makes, and of what is beside it: ".NAME.erofs.PID", ".NAME.erofs.PID.tar"."""

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

    def argv(self, directory: Path, image: Path, left_out: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the command that packs a directory.

        The image is not compressed: under TCG, decompression takes longer than reads from the host's disk.

        Args:
            directory: The directory.
            image: The image to write.
            left_out: Paths below the directory that are left out, with all below them.
        """
        program = self.find() or self.program
        if self.name == "erofs":
            return (program, *(f"--exclude-path={path}" for path in left_out), str(image), str(directory))
        plain = ("-noI", "-noD", "-noF", "-noX", "-no-progress")
        return (program, str(directory), str(image), *plain, *(("-e", *left_out) if left_out else ()))

    def find(self) -> str | None:
        """Return the path of the program; None if there is none. A user's PATH may lack /usr/sbin."""
        return shutil.which(self.program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


FORMATS = (
    Format("erofs", "mkfs.erofs", "erofs-utils", "EROFS_FS"),
    Format("squashfs", "mksquashfs", "squashfs-tools", "SQUASHFS"),
)


def image_root(image: Path, chosen: Format, *, words: str, init: str, systemd: bool) -> Root:
    """Return an image in the cache as a root; in a dry run it need not exist.

    Args:
        image: The image.
        chosen: Its format.
        words: The option, as the user wrote it.
        init: See `Root.init`.
        systemd: See `Root.systemd`.
    """
    try:
        size = f"of {-(-image.stat().st_size // 1024):,} KiB"
    except OSError:
        size = "that is not made yet"
    how = option("root_image", "never")
    return Root(
        words=words,
        location=image,
        file_system=chosen.name,
        format="raw",
        init=init,
        systemd=systemd,
        note=f"{words} as a read-only {chosen.name} image {size}, {image}; the guest can be saved and cloned;"
        f" {how} shares it as a directory instead",
    )


def directory_root(directory: Path, making: Making, *, words: str, init: str, systemd: bool) -> Root:
    """Return a directory of the cache as a root, which the guest gets read-only.

    Args:
        directory: The directory; in a dry run it need not exist.
        making: For which guest.
        words: The option, as the user wrote it.
        init: See `Root.init`.
        systemd: See `Root.systemd`.
    """
    file_system = virtiofsd.choose(making.supports, directory, read_only=True)
    owners = "" if os.geteuid() == 0 else "; all its files belong to you, because you are not root"
    how = option("root_image", "always")
    return Root(
        words=words,
        location=directory,
        file_system=file_system,
        init=init,
        systemd=systemd,
        note=f"{words}, unpacked in {directory}, read-only, over {file_system}{owners};"
        f" the guest cannot be saved or cloned: {how} packs it as an image",
    )


def of_directory(directory: Path, making: Making, left_out: Sequence[str] = ()) -> tuple[Path, Format]:
    """Return a directory as an image; pack it, unless the cache has an image of its present state.

    Args:
        directory: The directory.
        making: For which guest.
        left_out: See `Format.argv`.

    Raises:
        HostError: a program or disk space is missing, or a file cannot be read.
        BuildError: the image cannot be made.
        DeadlineError: it took too long.
    """
    chosen = choose(making.supports)
    what = f"packing {directory}"
    making.report(Step(what, note="looking for changes"))
    digest, size = _state(directory, {f"{directory}/{path}".replace("//", "/") for path in left_out})
    target = cache.directory("root") / f"{digest}.{chosen.name}"

    def pack(image: Path) -> None:
        cache.check_space(image.parent, size)
        making.report(Step(what, note=f"{size / 2**20:.0f} MiB as {chosen.name}"))
        argv = chosen.argv(directory, image, left_out)
        process.run(argv, deadline=making.deadline.at_most(PACK_SECONDS))

    return making.make(target, pack, what), chosen


def of_archive(
    name: str,
    write: Callable[[Path], None],
    options: GuestOptions,
    making: Making,
    *,
    words: str,
    what: str,
    init: str,
    systemd: bool = False,
) -> Root:
    """Return the contents of a tar archive as a root: an image, or a directory if the user wants that.

    Args:
        name: Its name in the cache, without a suffix.
        write: Writes the archive to the path that is its argument.
        options: The options of the guest.
        making: For which guest.
        words: The option, as the user wrote it.
        what: The step, for reports.
        init: See `Root.init`.
        systemd: See `Root.systemd`.

    Raises:
        HostError: a program or disk space is missing.
        BuildError: it cannot be unpacked or packed.
        DeadlineError: it took too long.
        VmdebugError: as `write` does.
    """

    def make_with(use: Callable[[Path, Path], None], target: Path) -> None:
        archive = target.with_name(f"{target.name}.tar")
        try:
            write(archive)
            making.report(Step(what, note="writing the root file system"))
            use(archive, target)
        finally:
            archive.unlink(missing_ok=True)

    where = cache.directory("root")
    if options.root_image == "never":
        target = where / f"{name}.root"
        unpacking = functools.partial(unpack, deadline=making.deadline)
        made = making.make(target, functools.partial(make_with, unpacking), what)
        return directory_root(made, making, words=words, init=init, systemd=systemd)
    chosen = choose(making.supports)
    packing = functools.partial(image_of, chosen, deadline=making.deadline)
    pack = functools.partial(make_with, packing)
    made = making.make(where / f"{name}.{chosen.name}", pack, what)
    return image_root(made, chosen, words=words, init=init, systemd=systemd)


def make(
    target: Path, pack: Callable[[Path], None], *, what: str, report: Report, deadline: Deadline
) -> Path:
    """Return an image or a directory in the cache; make it unless it exists.

    Args:
        target: Its path.
        pack: Writes it to the path that is its argument.
        what: The step, for reports.
        report: Called before it is made.
        deadline: When to stop waiting for another process that is making it.

    Raises:
        VmdebugError: as `pack` does.
    """
    if cache.used(target):
        return target
    with cache.lock(target, what, report, deadline):
        if not cache.used(target):
            _sweep(target)
            report(Step(what))
            with _temporary(target) as made:
                pack(made)
                with cache.writing(target.parent):
                    made.replace(target)
            cache.keep_newest(target.parent, f"*{target.suffix}", _KEPT)
    return target


def image_of(chosen: Format, archive: Path, image: Path, *, deadline: Deadline) -> None:
    """Unpack a tar archive, and pack it as an image. If this user is not root, fakeroot keeps the owners.

    Raises:
        HostError: a program is missing.
        BuildError: it cannot be unpacked or packed.
        DeadlineError: it took too long.
    """
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=f"{image.name}.unpacked.") as name:
        directory = Path(name, "root")
        directory.mkdir()
        lines = [
            shlex.join(_untar(archive, directory)),
            shlex.join(chosen.argv(directory, image)),
            f"chmod -R u+rwX {shlex.quote(str(directory))}",
        ]
        fake = () if os.geteuid() == 0 else (str(process.find("fakeroot", package="fakeroot")),)
        process.run((*fake, "sh", "-ec", "\n".join(lines)), deadline=deadline.at_most(PACK_SECONDS))


def unpack(archive: Path, directory: Path, *, deadline: Deadline) -> None:
    """Unpack a tar archive to a new directory. If this user is not root, it gets all files, and no devices.

    Raises:
        HostError: tar is missing.
        BuildError: it cannot be unpacked.
        DeadlineError: it took too long.
    """
    directory.mkdir()
    words = _untar(archive, directory)
    if os.geteuid() != 0:
        words = (*words, "--no-same-owner", "--exclude=./dev/*")
    process.run(words, deadline=deadline.at_most(PACK_SECONDS))


def _untar(archive: Path, directory: Path) -> tuple[str, ...]:
    """Return the command that unpacks an archive with owners, modes and capabilities of files."""
    kept = ("--numeric-owner", "--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability")
    return ("tar", "-x", "-p", *kept, "--warning=none", "-f", str(archive), "-C", str(directory))


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


def _state(directory: Path, left_out: Container[str]) -> tuple[str, int]:
    """Return a digest of all names, sizes, modes and times below a directory, and the bytes of its files."""
    digest, size = hashlib.sha256(os.fsencode(directory)), 0
    try:
        for top, below, files in os.walk(directory, onerror=_raise):
            start = top.rstrip("/")
            below[:] = sorted(name for name in below if f"{start}/{name}" not in left_out)
            for name in sorted([*files, *below]):
                path = f"{start}/{name}"
                if path in left_out:
                    continue
                status = os.lstat(path)
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
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
    return digest.hexdigest()[:16], size


def _raise(error: OSError) -> None:
    raise error


def _sweep(target: Path) -> None:
    """Remove what killed processes have left of what they made in the directory of `target`.

    Args:
        target: What this process makes; it has the lock.
    """
    for path in target.parent.glob(".*"):
        found = _TEMPORARY.match(path.name)
        if found and (found[1] == target.name or _is_free(path.with_name(f"{found[1]}.lock"))):
            cache.remove(path)


def _is_free(lock: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), lock.open("rb") as file:
        return locks.try_lock(file.fileno())
    return True


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`; after the block, remove what is there, if anything is."""
    path = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield path
    finally:
        cache.remove(path)
