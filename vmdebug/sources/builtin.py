"""The kernel that `vmdebug kernel build` made."""

from __future__ import annotations

from vmdebug import arch, kimage
from vmdebug.errors import HostError
from vmdebug.guest import Kernel
from vmdebug.sources import builtin_build
from vmdebug.sources.kernels import tree


def kernel(*, force: bool = False) -> Kernel:
    """Return the builtin kernel that was built last; nothing is started to find it.

    Args:
        force: Take files of different builds.

    Raises:
        HostError: none is built.
        MismatchError: its files are of different builds.
    """
    built = builtin_build.built()
    if built is None:
        raise HostError("the builtin kernel is not built yet", hint="run `vmdebug kernel build`, once")
    kimage.check(built.image, built.vmlinux, force=force)
    return Kernel(
        image=built.image,
        origin="the builtin kernel",
        arch=arch.X86_64.name,
        build_id=kimage.read_image(built.image).build_id,
        release=built.release,
        vmlinux=built.vmlinux,
        gdb_scripts=tree.scripts(built.directory),
        modules=built.modules,
        source=tree.paths_start(built.directory),
    )
