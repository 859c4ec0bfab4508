"""Packs a kernel's modules for its guest: in the initramfs, or as a read-only image if there are many.

An image costs the guest neither memory nor time at boot, and a guest with one can be saved and cloned.
Debian's 4000 modules, 400 MB, are packed in 5 s, once. The indexes of modprobe and the modules of the option
`module` are in the initramfs in any case, so that the image is made again only if the kernel's own modules
change.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmdebug import cache, guest, paths, process
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel
from vmdebug.progress import Report, Step
from vmdebug.roots import packed
from vmdebug.roots.packed import Format
from vmdebug.sources import cpio
from vmdebug.sources.configuration import dotconfig
from vmdebug.sources.guest_modules import module_set, staging
from vmdebug.sources.guest_modules.module_set import ModuleSet

LARGEST = 32 << 20
"""Bytes of modules that fit into an initramfs, which is in the guest's memory."""

IMAGE = ".image"
"""The directory in lib/modules/RELEASE where the guest mounts the image; "kernel" is a link into it."""

FIRST = "lib/first-modules"
"""The directory in the initramfs with the modules that its init loads before it mounts anything."""

_USEFUL = ("virtio_console",)
"""Modules that the guest loads first if it has them: the agent's ports."""

_FORMAT = 1
"""Increase it when the same modules must give other archives."""

_KEPT, _KEPT_STAGES = 8, 3
"""Number of most recently used archives, images and stages to keep in the cache."""


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """The modules of a guest.

    Args:
        archive: A cpio archive for its initramfs: the indexes, and the modules or a place for the image.
        image: The image with the modules, or None.
        format: The file system of the image, as mount(8) takes it; "" without one.
        count: How many modules there are.
        size: Their size in bytes.
        lacking: Why there is no image, if there should be one; "" otherwise.
    """

    archive: Path
    image: Path | None = None
    format: str = ""
    count: int = 0
    size: int = 0
    lacking: str = ""

    def note(self, of: Path) -> str:
        """Return where the guest's modules come from, and how it gets them, for the user."""
        how = f"a read-only {self.format} image" if self.image is not None else "the initramfs"
        return f"modules: {self.count} of {of}, {-(-self.size // 1024):,} KiB, in {how}{self.lacking}"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to pack.

    Args:
        modules: The kernel's modules.
        extra: The module files of the option `module`.
        load: Whether the guest loads these.
        first: The kernel's names of modules that the guest needs to mount its root file system.
        foreign: Whether the initramfs is not vmdebug's, but that of a distribution: then it gets these in its
            /lib/modules, and the system gets all modules as an image with the directory RELEASE.
    """

    modules: ModuleSet
    extra: tuple[Path, ...] = ()
    load: bool = True
    first: tuple[str, ...] = ()
    foreign: bool = False


def drivers(kernel: Kernel, names: frozenset[str]) -> Callable[[str, str], bool]:
    """Return a function that tells whether a kernel has a driver, built in or as a module.

    Args:
        kernel: The kernel.
        names: The names of the modules that the guest gets.

    Returns:
        A function of the driver's option, without CONFIG_, and of its name as a module.
    """
    configuration = dotconfig.of(kernel)
    built_in = dotconfig.built_in(kernel)

    def has(option: str, module: str) -> bool:
        return (
            module in names
            or module in built_in
            or (configuration is not None and configuration.value(option) == "y")
        )

    return has


def make(kernel: Kernel, wanted: Wanted, *, report: Report, deadline: Deadline) -> Bundle:
    """Return the modules of a guest, packed; pack them unless the cache has them.

    Args:
        kernel: The guest's kernel.
        wanted: Its modules.
        report: Called with each long step.
        deadline: When to give up.

    Raises:
        HostError: a module cannot be read, a program is missing, or the cache is full.
        BuildError: depmod or the program that makes the image failed.
        DeadlineError: it took too long.
    """
    where = cache.directory("modules")
    state = wanted.modules.state()
    extra = module_set.digest("extra", {str(path): path for path in wanted.extra})
    key = hashlib.sha256(
        f"{_FORMAT} {state} {extra} {wanted.load} {wanted.first} {wanted.foreign}".encode()
    ).hexdigest()[:16]
    record = where / f"{key}.json"
    found = _read(record)
    if found is not None:
        return found
    stage = where / f"stage-{hashlib.sha256(str(wanted.modules.directory).encode()).hexdigest()[:16]}"
    with cache.lock(stage, staging.WHAT, report, deadline):
        found = _read(record)
        if found is None:
            pack = _pack_foreign if wanted.foreign else _pack
            found = pack(kernel, wanted, stage, where / f"{key}.cpio", report=report, deadline=deadline)
            cache.write(record, guest.encode(found))
        if not wanted.modules.built:
            shutil.rmtree(stage, ignore_errors=True)
        _prune(where)
    return found


def _read(record: Path) -> Bundle | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        found = guest.decode(record.read_bytes(), Bundle)
        files = [record, found.archive, *([found.image] if found.image is not None else [])]
        if all(map(cache.used, files)):
            return found
    return None


def _pack(
    kernel: Kernel, wanted: Wanted, stage: Path, archive: Path, *, report: Report, deadline: Deadline
) -> Bundle:
    release = wanted.modules.release
    top = staging.update(stage, wanted.modules, report=report, deadline=deadline)
    size = sum((top / name).stat().st_size for name in wanted.modules.files)
    chosen, lacking = (None, "") if size <= LARGEST else _format(kernel, wanted.modules.names())
    image = None
    report(Step(staging.WHAT, note=chosen.name if chosen else "initramfs"))
    if chosen is not None:
        staging.add(top, ())
        image = archive.parent / f"{wanted.modules.state()}.{chosen.name}"
        _make_image(chosen, top, image, report, deadline)
    staging.add(top, wanted.extra)
    staging.index(stage, release, deadline=deadline)
    first = ("virtio_pci", "virtio_blk", chosen.name) if chosen is not None else ()
    needed = staging.load_order(stage, release, (*first, *wanted.first, *_USEFUL), deadline=deadline)
    entries = _entries(top, wanted, needed, image=chosen)
    return _bundle(archive, entries, wanted, size, _Image(image, chosen, lacking))


def _pack_foreign(
    kernel: Kernel, wanted: Wanted, stage: Path, archive: Path, *, report: Report, deadline: Deadline
) -> Bundle:
    release = wanted.modules.release
    top = staging.update(stage, wanted.modules, report=report, deadline=deadline)
    size = sum((top / name).stat().st_size for name in wanted.modules.files)
    staging.add(top, wanted.extra)
    staging.index(stage, release, deadline=deadline)
    # Nothing loads a driver for the disk that has it.
    chosen, lacking = _format(kernel, frozenset())
    image = archive.with_suffix(f".{chosen.name}") if chosen is not None else None
    if chosen is not None and image is not None:
        _make_image(chosen, top.parent, image, report, deadline)
    names = (*wanted.first, *map(paths.module_name, wanted.extra))
    files = staging.load_order(stage, release, names, deadline=deadline)
    if size <= LARGEST:
        files = [*(top / name for name in wanted.modules.files), *top.glob(f"{staging.EXTRA}/*.ko")]
    entries = [
        cpio.file(path.relative_to(stage).as_posix(), path.read_bytes())
        for path in (*files, *top.glob("modules.*"))
    ]
    return _bundle(archive, entries, wanted, size, _Image(image, chosen, lacking))


class _Image(NamedTuple):
    """The image with a guest's modules, and its format; or None, and why there is none."""

    path: Path | None
    format: Format | None
    lacking: str


def _bundle(archive: Path, entries: Sequence[cpio.Entry], wanted: Wanted, size: int, image: _Image) -> Bundle:
    """Write the archive, and return the bundle."""
    with cache.writing(archive.parent):
        paths.write_atomically(archive, cpio.archive(entries))
    return Bundle(
        archive=archive,
        image=image.path,
        format=image.format.name if image.format is not None else "",
        count=len(wanted.modules.files) + len(wanted.extra),
        size=size,
        lacking=image.lacking,
    )


def before(archive: Path, initrd: Path) -> Path:
    """Return an initramfs that is preceded by an archive of modules, in the cache.

    The kernel unpacks one archive after the other. Ours is first, because it is not packed: the kernel need
    not find where a packed one ends. See Documentation/driver-api/early-userspace/buffer-format.rst.

    Raises:
        HostError: it cannot be read, or the cache is full.
    """
    key = module_set.digest(str(archive), {"initrd": initrd})
    target = archive.with_name(f"{key}.initrd")
    if not cache.used(target):
        cache.write(target, archive.read_bytes() + initrd.read_bytes())
        cache.keep_newest(target.parent, "*.initrd", _KEPT)
    return target


def _format(kernel: Kernel, loadable: frozenset[str]) -> tuple[Format | None, str]:
    """Return the format of the image that a guest can mount; None, and why, if there is none.

    Args:
        kernel: Its kernel.
        loadable: The modules that are loaded before.
    """
    has = drivers(kernel, loadable)
    if not (has("VIRTIO_PCI", "virtio_pci") and has("VIRTIO_BLK", "virtio_blk")):
        return None, ": an image needs VIRTIO_BLK and VIRTIO_PCI in the kernel, or as modules"
    for each in packed.FORMATS:
        if each.find() and has(each.option, each.name):
            return each, ""
    return None, f": an image needs {packed.FORMATS[0].option} in the kernel, and {packed.FORMATS[0].package}"


def _make_image(chosen: Format, top: Path, image: Path, report: Report, deadline: Deadline) -> None:
    def pack(path: Path) -> None:
        process.run(chosen.argv(top, path), deadline=deadline.at_most(packed.PACK_SECONDS))

    packed.make(image, pack, what=staging.WHAT, report=report, deadline=deadline)


def _entries(top: Path, wanted: Wanted, first: Sequence[Path], *, image: Format | None) -> list[cpio.Entry]:
    """Return the contents of the archive."""
    here = f"lib/modules/{wanted.modules.release}"
    inside = module_set.tops(wanted.modules.files)
    if image is not None:
        entries = [cpio.directory(f"{here}/{IMAGE}")]
        entries += [cpio.link(f"{here}/{name}", f"{IMAGE}/{name}") for name in inside]
    else:
        entries = [cpio.file(f"{here}/{name}", (top / name).read_bytes()) for name in wanted.modules.files]
    for path in (*top.glob("modules.*"), *top.glob(f"{staging.EXTRA}/*.ko")):
        entries.append(cpio.file(f"{here}/{path.relative_to(top)}", path.read_bytes()))
    for number, path in enumerate(first):
        entries.append(cpio.file(f"{FIRST}/{number:03}-{path.name}", path.read_bytes()))
    return [*entries, cpio.file("etc/modules", _variables(wanted, image).encode())]


def _variables(wanted: Wanted, image: Format | None) -> str:
    """Return what the init script has to know, as shell variables."""
    names = [paths.module_name(each) for each in wanted.extra] if wanted.load else []
    said = {
        "release": wanted.modules.release,
        "image": image.name if image is not None else "",
        "load": " ".join(names),
    }
    return "".join(f"modules_{name}={shlex.quote(value)}\n" for name, value in said.items())


def _prune(where: Path) -> None:
    for pattern in ("*.cpio", "*.json", "*.erofs", "*.squashfs"):
        cache.keep_newest(where, pattern, _KEPT)
    cache.keep_newest(where, f"stage-{16 * '?'}", _KEPT_STAGES)
