"""The modules of a kernel, as `make modules_install` lays them out in lib/modules/RELEASE."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmdebug import paths
from vmdebug.errors import HostError, MismatchError, UsageError
from vmdebug.guest import Kernel
from vmdebug.guest_options import NO_MODULES, GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.sources.kernels import installed_modules, modules
from vmdebug.spelling import option

LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
"""What depmod reads beside the modules: see modules_install in the kernel's Makefile."""


@dataclass(frozen=True, slots=True)
class ModuleSet:
    """The modules of a kernel.

    Args:
        release: Its `uname -r`.
        directory: The build tree, or lib/modules/RELEASE.
        built: Whether it is a build tree: its modules have debug information, and change.
        files: The modules, by their path in lib/modules/RELEASE: "kernel/fs/ext4/ext4.ko".
    """

    release: str
    directory: Path
    built: bool
    files: Mapping[str, Path]

    def names(self) -> frozenset[str]:
        """Return the kernel's names of the modules."""
        return frozenset(paths.module_name(file) for file in self.files.values())

    def lists(self) -> dict[str, Path]:
        """Return depmod's other inputs that exist, by name."""
        found = {name: self.directory / name for name in LISTS}
        return {name: path for name, path in found.items() if or_false(path.is_file)}

    def state(self) -> str:
        """Return a digest of the paths, sizes and times of all files.

        Raises:
            HostError: a file cannot be read.
        """
        files = {**self.files, **self.lists()}
        return digest(f"{self.release}\0{self.directory}", files)


def digest(what: str, files: Mapping[str, Path]) -> str:
    """Return a digest of a text, and of the names, sizes and times of files.

    Raises:
        HostError: a file cannot be read.
    """
    found = hashlib.sha256(what.encode())
    try:
        for name, path in sorted(files.items()):
            status = path.stat()
            found.update(os.fsencode(f"{name}\0{path}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    except OSError as error:
        raise HostError(
            f"cannot read the module {error.filename}: {error.strerror}", hint="build the modules again"
        ) from error
    return found.hexdigest()[:16]


def choose(kernel: Kernel, options: GuestOptions) -> Kernel:
    """Return a kernel with the modules of the option `modules`, if that is given.

    Raises:
        UsageError: the directory has no modules of the kernel.
        MismatchError: they are from another build.
    """
    if options.modules is None:
        return kernel
    if options.modules == NO_MODULES:
        return msgspec.structs.replace(kernel, modules=None)
    given = absolute(options.modules)
    found = installed_modules.of_directory(given, kernel.release)
    what = option("modules", options.modules)
    if found is None:
        raise UsageError(
            f"{what}: there are no modules of {kernel.release or 'the kernel'} in {given}",
            hint="give lib/modules/RELEASE, or the top of an unpacked package that has it",
        )
    chosen = msgspec.structs.replace(kernel, modules=found)
    there = modules.look(chosen)
    if there.belong is False and not options.force:
        raise MismatchError(
            f"{what}: {there.which} is of another build: its vermagic is {there.vermagic!r}, the kernel's"
            f" {there.wanted!r}",
            hint=f"give this kernel's modules; {option('force', True)} continues anyway",
        )
    return chosen


def of(kernel: Kernel) -> ModuleSet | None:
    """Return the modules of a kernel; None if it has none."""
    if kernel.modules is None or not kernel.release:
        return None
    # A debug package has a vmlinux here, too.
    if or_false((kernel.modules / "include/config").is_dir):
        return _of_tree(kernel.modules, kernel.release)
    inside = kernel.modules / kernel.release
    directory = inside if or_false(inside.is_dir) else kernel.modules
    # Strings, because pathlib takes a quarter of a second for Debian's 4000 modules.
    start = len(f"{directory}/")
    found = ((path, str(path)) for path in paths.modules(directory))
    files = {_plain(name[start:]): path for path, name in found if not name.endswith(".debug")}
    return ModuleSet(kernel.release, directory, built=False, files=files) if files else None


def empty(kernel: Kernel) -> ModuleSet:
    """Return no modules, for a kernel whose guest gets only those of the option `module`."""
    return ModuleSet(kernel.release, kernel.modules or kernel.image.parent, built=False, files={})


def _of_tree(directory: Path, release: str) -> ModuleSet | None:
    """Return the modules that the last `make` in a tree has built.

    Before Linux 6.4 modules.order names `.ko` files, and since then `.o` files.
    """
    order = directory / "modules.order"
    if not or_false(order.is_file):
        return None
    names = (Path(line).with_suffix(".ko") for line in order.read_text().split())
    files = {f"kernel/{name}": directory / name for name in names}
    there = {name: path for name, path in files.items() if or_false(path.is_file)}
    return ModuleSet(release, directory, built=True, files=there) if there else None


def _plain(name: str) -> str:
    """Return the path of a module that is decompressed."""
    return f"{name.rpartition('.ko')[0]}.ko"


def tops(files: Iterable[str]) -> tuple[str, ...]:
    """Return the first directories of paths in lib/modules/RELEASE: "kernel", "updates"."""
    return tuple(sorted({name.partition("/")[0] for name in files}))
