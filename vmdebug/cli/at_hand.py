"""Finds the kernel that a text or a dump names, among those with a vmlinux on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmdebug.errors import VmdebugError

if TYPE_CHECKING:
    from vmdebug.debugger.text_kernels import Said
    from vmdebug.guest import Kernel


def kernel(said: tuple[Said, ...]) -> Kernel | None:
    """Return the kernel of a running VM, or of an installed debug package, that may be one of these.

    Args:
        said: The kernels that the text names.
    """
    from vmdebug import kimage
    from vmdebug.debugger import text_kernels

    for each in _candidates(said) if said else ():
        assert each.vmlinux is not None  # noqa: S101 - for the type checker
        with contextlib.suppress(VmdebugError):  # a vmlinux that was removed
            if not text_kernels.is_other(said, kimage.read_vmlinux(each.vmlinux)):
                return each
    return None


def _candidates(said: tuple[Said, ...]) -> Iterator[Kernel]:
    from vmdebug import vm
    from vmdebug.sources.kernels import image

    for name in vm.names():
        with contextlib.suppress(VmdebugError):
            found = vm.find(name).state.spec.kernel
            if found.vmlinux is not None:
                yield found
    for each in said:
        for file in image.installed(each.release, each.build_id):
            with contextlib.suppress(VmdebugError):
                yield image.of_vmlinux(file)
