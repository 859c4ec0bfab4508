"""A boot image, and the usual places of its symbols."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vmdebug import arch, kimage
from vmdebug.errors import MismatchError
from vmdebug.guest import Kernel
from vmdebug.sources.kernels import installed_modules, tree, unified

# Where debug packages and builds install vmlinux: the list of `vmlinux_path__init` in
# tools/perf/util/symbol.c.
_INSTALLED = (
    "usr/lib/debug/boot/vmlinux-{release}",
    "usr/lib/debug/lib/modules/{release}/vmlinux",
    "lib/modules/{release}/build/vmlinux",
)
_ROOT = Path("/")

_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")


def kernel(path: Path, *, search: bool = True, force: bool = False) -> Kernel:
    """Return the kernel of a boot image, with symbols if they are found.

    Args:
        path: The image. Links are resolved, because the next build may change them.
        search: Whether to search for symbols.
        force: Whether to accept symbols from another build, if they are beside the image.

    Raises:
        UsageError: it is not a boot image.
        MismatchError: the vmlinux beside it is from another build.
        HostError: a file cannot be read.
    """
    image = path.resolve()
    says = kimage.read_image(image)
    found = symbols(image, says.release, force=force) if search else None
    whole = unified.read(image)
    return with_symbols(
        Kernel(
            image=image if whole is None else whole.kernel,
            origin=f"the image {path}" if whole is None else f"the unified kernel image {path}",
            arch=says.arch,
            build_id=says.build_id,
            release=says.release,
        ),
        found,
    )


def of_vmlinux(vmlinux: Path) -> Kernel:
    """Return the kernel of a vmlinux, without a boot image; with modules of its build tree or its release.

    Raises:
        UsageError: it is not a vmlinux.
        HostError: it cannot be read.
    """
    file = vmlinux.absolute()
    says = kimage.read_vmlinux(file)
    kernel = Kernel(
        image=file,
        origin=f"the vmlinux {vmlinux}",
        arch=says.arch,
        build_id=says.build_id,
        release=says.release,
    )
    return with_symbols(kernel, file)


def with_symbols(kernel: Kernel, vmlinux: Path | None) -> Kernel:
    """Return the kernel with this vmlinux and with its modules.

    If the vmlinux is in a build tree, the kernel gets scripts and source, too.
    """
    built = vmlinux is not None and (vmlinux.parent / "include/config").is_dir()
    top = vmlinux.parent if vmlinux is not None else Path()
    release = kernel.release if _RELEASE.fullmatch(kernel.release) else ""
    tops = installed_modules.tops(kernel.image, vmlinux)
    found = installed_modules.loadable(kernel.image, release, tops) if release and not built else None
    symbols = installed_modules.symbols(release, tops) if release and not built else ()
    return Kernel(
        image=kernel.image,
        origin=kernel.origin,
        arch=kernel.arch,
        build_id=kernel.build_id,
        release=kernel.release,
        vmlinux=vmlinux,
        gdb_scripts=tree.scripts(top) if vmlinux is not None else None,
        modules=top if built else kernel.modules or found,
        module_symbols=kernel.module_symbols if built or kernel.modules is not None else symbols,
        source=tree.paths_start(top) if built else kernel.source,
    )


def symbols(image: Path, release: str, *, force: bool = False) -> Path | None:
    """Return the vmlinux of an image; None if there is none.

    Args:
        image: The image, absolute.
        release: Its `uname -r`.
        force: Whether to accept one from another build, if it is beside the image.

    Raises:
        MismatchError: the vmlinux beside it is from another build. A vmlinux of a debug package that does
            not match is ignored.
    """
    apart: MismatchError | None = None
    others = []
    for candidate in beside(image, release):
        try:
            kimage.check(image, candidate)
        except MismatchError as error:
            apart = apart or error
            others.append(candidate)
        else:
            return candidate
    if apart is not None and not force:
        raise apart
    if others:
        return others[0]
    found = installed(release, kimage.read_image(image).build_id, image)
    return next((each for each in found if not is_other_build(image, each)), None)


def beside(image: Path, release: str) -> Iterator[Path]:
    """Yield the files beside an image that should have its symbols."""
    yield from _files([image.parent / "vmlinux"])
    if _RELEASE.fullmatch(release):
        yield from _files([image.parent / f"vmlinux-{release}"])
    # The user named the image in a tree.
    for row in arch.rows():
        if image.as_posix().endswith(f"/{row.image}"):
            yield from _files([image.parents[row.image.count("/")] / "vmlinux"])


def installed(release: str, build_id: str = "", image: Path | None = None) -> Iterator[Path]:
    """Yield the files of debug packages and installed builds for a build-id and a release.

    Args:
        release: The kernel's `uname -r`.
        build_id: Its build-id, or "".
        image: Its boot image, absolute: the debug package may be unpacked in the same directory.
    """
    named = kimage.by_build_id(build_id)
    if named is not None:
        yield named
    # The release comes from an untrusted file: it must not lead out of these directories.
    if _RELEASE.fullmatch(release):
        tops = installed_modules.tops(image, None)[:-1] if image is not None else ()
        yield from _files(
            [top / place.format(release=release) for top in (*tops, _ROOT) for place in _INSTALLED]
        )


def is_other_build(image: Path, vmlinux: Path) -> bool:
    """Whether a vmlinux is known to be from another build than an image."""
    try:
        kimage.check(image, vmlinux)
    except MismatchError:
        return True
    return False


def _files(paths: list[Path]) -> Iterator[Path]:
    return (path for path in paths if path.is_file())
