"""The options `kernel`, `vmlinux` and `gdb_scripts`, which replace a guest's own files."""

from __future__ import annotations

import msgspec

from vmdebug import kimage
from vmdebug.errors import MismatchError, UsageError
from vmdebug.guest import Kernel
from vmdebug.guest_options import GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.sources.kernels import image, tree
from vmdebug.sources.kernels.dev_output import why_unusable
from vmdebug.spelling import option

NONE = "no symbols: "
"""What a note begins with that says why there is no vmlinux, and ends with how to give it."""


def apply(own: Kernel, options: GuestOptions) -> Kernel:
    """Return the kernel to boot, with the symbols and scripts that the user asks for.

    Args:
        own: The guest's own.
        options: `kernel` replaces it; a tree also replaces symbols, scripts and modules. `vmlinux` and
            `gdb_scripts` replace what was found. Relative paths start at the current directory.

    Raises:
        UsageError: an option names a file of the wrong kind.
        MismatchError: symbols and kernel are from different builds.
        HostError: a file cannot be read.
    """
    return symbols(kernel(options) or own, options)


def kernel(options: GuestOptions) -> Kernel | None:
    """Return the kernel that the option `kernel` names; None if it is not given.

    Raises:
        UsageError: it is neither a boot image nor a built tree.
        MismatchError: its symbols and image are from different builds.
        HostError: a file cannot be read.
    """
    if options.kernel is None:
        return None
    path = absolute(options.kernel)
    if or_false(path.is_dir):
        return tree.kernel(path, force=options.force)
    if not or_false(path.exists):
        raise UsageError(
            f"{option('kernel', options.kernel)}: {path} does not exist",
            hint="give a boot image or a build tree",
        )
    return image.kernel(path, search=options.vmlinux is None, force=options.force)


def symbols(kernel: Kernel, options: GuestOptions) -> Kernel:
    """Return the kernel with the symbols of `--vmlinux` and the scripts of `--gdb-scripts`.

    Raises:
        UsageError: an option names a file of the wrong kind.
        MismatchError: the symbols are from another build.
        HostError: a file cannot be read.
    """
    if options.vmlinux is not None:
        vmlinux = absolute(options.vmlinux)
        kimage.read_vmlinux(vmlinux)
        kimage.check(kernel.image, vmlinux, force=options.force)
        given = image.with_symbols(kernel, vmlinux)
        kernel = msgspec.structs.replace(given, gdb_scripts=given.gdb_scripts or kernel.gdb_scripts)
    if options.gdb_scripts is not None:
        scripts = absolute(options.gdb_scripts)
        why = why_unusable(scripts)
        if why:
            raise UsageError(
                f"{option('gdb_scripts', options.gdb_scripts)}: {why}",
                hint="give a build tree after `make scripts_gdb`, with CONFIG_GDB_SCRIPTS=y",
            )
        kernel = msgspec.structs.replace(kernel, gdb_scripts=scripts)
    return kernel


def notes(kernel: Kernel) -> tuple[str, ...]:
    """Return notes for the user about the symbols of a kernel."""
    if kernel.vmlinux is None:
        return (_why_no_symbols(kernel),)
    found = []
    if not kimage.dwarf(kernel.vmlinux).version:
        found.append(
            f"{kernel.vmlinux} has no debugging information: breakpoints, backtraces and traces by function"
            f" work, source lines, types and arguments do not; {kimage.WITHOUT_DWARF}"
        )
    try:
        proof = kimage.check(kernel.image, kernel.vmlinux)
    except MismatchError as error:  # accepted with --force
        found.append(f"warning: {error.message}")
    else:
        found += [_how_proven(kernel, proof)] if proof != "build-id" else []
    return tuple(found)


def _why_no_symbols(kernel: Kernel) -> str:
    others = [each for each in image.installed(kernel.release) if image.is_other_build(kernel.image, each)]
    if others:
        return f"{NONE}{others[0]} is of another build; give this one's: {option('vmlinux', 'FILE')}"
    return (
        f"{NONE}no vmlinux beside {kernel.image}, and none of {kernel.release or 'its release'} in"
        f" /usr/lib/debug; give it: {option('vmlinux', 'FILE')}"
    )


def _how_proven(kernel: Kernel, proof: kimage.Proof) -> str:
    unread = kimage.read_image(kernel.image).unread
    why = f" ({unread})" if unread else ""
    if proof == "none":
        return f"nothing shows whether {kernel.vmlinux} belongs to {kernel.image}{why}"
    by = "version and build number" if proof == "banner" else "release"
    return f"{kernel.vmlinux} is taken for this kernel's by its {by}, not by a build-id{why}"
