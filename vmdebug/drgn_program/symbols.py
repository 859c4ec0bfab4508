"""Loads the symbols of a program: of the vmlinux that is proven to be the kernel's, and of its modules."""

from __future__ import annotations

import re
from pathlib import Path

import drgn

from vmdebug import kimage
from vmdebug.errors import MismatchError, StateError, UsageError
from vmdebug.guest import Kernel
from vmdebug.spelling import option

_OFFSET = re.compile(rb"^KERNELOFFSET=([0-9a-f]+)$", re.MULTILINE)
_BUILD_ID = re.compile(rb"^BUILD-ID=([0-9a-f]+)$", re.MULTILINE)


def load(program: drgn.Program, kernel: Kernel, *, force: bool = False) -> tuple[str, ...]:
    """Prove that the program's memory is that of the kernel, and load the symbols.

    Args:
        program: A program of a Linux kernel.
        kernel: The kernel, with its vmlinux and modules.
        force: Whether to go on with a vmlinux of another build.

    Returns:
        Notes for the user: a vmlinux of another build, modules without symbols.

    Raises:
        UsageError: there is no vmlinux, or it has no debugging information.
        MismatchError: the kernel is from another build, and `force` is not set.
        StateError: the kernel is not mapped.
    """
    vmlinux = kernel.vmlinux
    if vmlinux is None:
        raise UsageError(
            "drgn needs the kernel's vmlinux, and there is none",
            hint=f"give it: {option('vmlinux', 'FILE')}",
        )
    if not kimage.dwarf(vmlinux).version:
        raise UsageError(
            f"drgn needs debugging information, and {vmlinux} has none", hint=kimage.WITHOUT_DWARF
        )
    notes = prove(program, vmlinux, force=force)
    # No server is asked, as in GDB.
    program.set_enabled_debug_info_finders(["standard"])
    options = program.debug_info_options
    # drgn accepts a file only if its build-id is that of the loaded module.
    directories = [str(each) for each in kernel.module_files() if each.is_dir()]
    files = [each for each in kernel.module_files() if not each.is_dir()]
    options.kernel_directories = (*directories, *options.kernel_directories)
    options.try_kmod = drgn.KmodSearchMethod.DEPMOD_OR_WALK
    if notes:
        program.create_loaded_modules()
        program.main_module().try_file(vmlinux, force=True)
    try:
        program.load_debug_info([vmlinux, *files], default=True)
    except drgn.MissingDebugInfoError as error:
        notes = (*notes, *_missing(error))
    return notes


def prove(program: drgn.Program, vmlinux: Path, *, force: bool = False) -> tuple[str, ...]:
    """Compare the kernel in memory with a vmlinux; with `force` return a note if they differ.

    Raises:
        MismatchError: they are of different builds.
        StateError: the memory cannot be read: the kernel is not mapped.
    """
    ours = kimage.fingerprint(vmlinux)
    if not ours.data:
        return ()
    info = program["VMCOREINFO"].string_()
    address = ours.address + slide(program)
    try:
        found = program.read(address, len(ours.data))
    except drgn.FaultError as error:
        if force:
            return (f"the {ours.name} of {vmlinux} cannot be compared: {error}",)
        found = b""
    if found == ours.data:
        return ()
    theirs = _BUILD_ID.search(info)
    if not found and theirs is None:
        raise StateError(
            f"the kernel is not mapped where {vmlinux} has its {ours.name}",
            hint="let the guest run first",
        )
    build_id = kimage.build_id(vmlinux)
    words = f"build-id {build_id or 'none'} against {theirs[1].decode() if theirs else 'an unknown one'}"
    if not force:
        raise MismatchError(
            f"the symbols are not those of the kernel in memory: {words}",
            hint=f"give its own vmlinux: {option('vmlinux', 'FILE')}; {option('force', True)} continues"
            " anyway",
            detail=f"symbols  {vmlinux}\n{info.decode(errors='replace').splitlines()[0]}",
        )
    return (f"using symbols of another build: {words}",)


def slide(program: drgn.Program) -> int:
    """Return by how many bytes KASLR has moved the kernel."""
    moved = _OFFSET.search(program["VMCOREINFO"].string_())
    return int(moved[1], 16) if moved else 0


def _missing(error: drgn.MissingDebugInfoError) -> tuple[str, ...]:
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("missing some")]
    return tuple(line for line in lines if line)
