"""The option `module`: out-of-tree modules that the guest gets and loads."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vmdebug import paths
from vmdebug.errors import MismatchError, UsageError
from vmdebug.guest import Kernel
from vmdebug.guest_options import GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.sources.kernels import modules, tree
from vmdebug.spelling import option


def check(kernel: Kernel, options: GuestOptions) -> tuple[Path, ...]:
    """Return the module files that a guest gets, absolute, after a check that its kernel can load them.

    Raises:
        UsageError: one is not a module file, or two have the same name.
        MismatchError: one is built for another kernel.
    """
    found: dict[str, Path] = {}
    for words in options.module:
        file, what = absolute(words), option("module", words)
        if not or_false(file.is_file):
            raise UsageError(f"{what}: there is no file {file}", hint=_how_to_build(kernel, file))
        name = paths.module_name(file)
        if name in found:
            raise UsageError(
                f"{what}: {found[name]} is a module of the same name, {name}", hint="give one of them"
            )
        found[name] = file
        _check_vermagic(file, what, kernel, force=options.force)
    return tuple(found.values())


def with_symbols(kernel: Kernel, extra: tuple[Path, ...]) -> Kernel:
    """Return a kernel with the symbols of these module files."""
    return msgspec.structs.replace(kernel, module_symbols=(*extra, *kernel.module_symbols))


def _check_vermagic(file: Path, what: str, kernel: Kernel, *, force: bool) -> None:
    magic = modules.vermagic(file)
    if not magic or not modules.is_loadable(file):
        raise UsageError(
            f"{what}: {file} is not a kernel module",
            hint="give the .ko file that `make M=DIR modules` has built, compressed or not",
        )
    wanted = modules.of_kernel(kernel) or kernel.release
    if force or not wanted or modules.fits(magic, wanted, has_versions=modules.has_versions(file)):
        return
    raise MismatchError(
        f"{what}: {file} is built for another kernel: its vermagic is {magic!r}, that of {kernel.origin}"
        f" {wanted!r}",
        hint=f"{_how_to_build(kernel, file)}; {option('force', True)} continues anyway",
    )


def _how_to_build(kernel: Kernel, file: Path) -> str:
    top = kernel.vmlinux.parent if kernel.vmlinux is not None else None
    built = top is not None and tree.is_tree(top)
    where = top if built else f"/lib/modules/{kernel.release}/build"
    return f"build it: make -C {where} M={file.parent} modules"
