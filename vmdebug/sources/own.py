"""Guests whose QEMU command line is ours: a tree, an image, `builtin`; they boot our initramfs."""

from __future__ import annotations

from pathlib import Path

from vmdebug import arch
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import (
    DEFAULT_MEMORY_MIB,
    Guest,
    GuestOptions,
    Kernel,
    LaunchSpec,
    OwnMachine,
    parameters,
)
from vmdebug.paths import absolute, holds
from vmdebug.progress import Report
from vmdebug.sources import initramfs, naming
from vmdebug.sources.kernels import image, replacements, tree
from vmdebug.spelling import option


def resolve(guest: Guest, options: GuestOptions, *, report: Report, deadline: Deadline) -> LaunchSpec:
    """Return what starts a kernel with our initramfs.

    Args:
        guest: A tree, an image, or `builtin`.
        options: What its user says about it.
        report: Not used: nothing here takes long.
        deadline: When making the initramfs is given up.

    Raises:
        UsageError: a file is not what it should be.
        HostError: something is missing on this machine.
        MismatchError: symbols and kernel are of different builds.
        DeadlineError: the initramfs took too long.
    """
    del report
    name = naming.vm_name(guest, options)
    # With a kernel given, the guest's own need not exist: `start --kernel TREE` before any `kernel build`.
    kernel = replacements.symbols(replacements.kernel(options) or _kernel(guest, options), options)
    machine = OwnMachine(initrd=_initrd(guest, options, kernel, deadline), disk=_disk(options))
    return LaunchSpec(
        name=name,
        guest=options.table or guest.words,
        machine=machine,
        kernel=kernel,
        parameters=parameters(arch.by_name(kernel.arch), kaslr=options.kaslr, append=options.append),
        halt=options.halt,
        accel=options.accel,
        memory=options.memory or DEFAULT_MEMORY_MIB,
        cpus=options.cpus or 1,
        tcp=options.tcp,
        qemu_args=options.qemu_args,
        notes=(*replacements.notes(kernel), *_without_meaning(options)),
    )


def _kernel(guest: Guest, options: GuestOptions) -> Kernel:
    match guest.kind:
        case "tree":
            return tree.kernel(Path(guest.location), force=options.force)
        case "image":
            return image.kernel(Path(guest.location), search=options.vmlinux is None, force=options.force)
        case "builtin":
            # It needs all that builds kernels, and the others need none of that.
            from vmdebug.sources import builtin  # noqa: PLC0415

            return builtin.kernel(force=options.force)
        case _:
            raise AssertionError(guest)


def _initrd(guest: Guest, options: GuestOptions, kernel: Kernel, deadline: Deadline) -> Path:
    # Only the builtin kernel's modules are few, and laid out as `make modules_install` does.
    if guest.kind == "builtin" and options.kernel is None and kernel.modules is not None:
        return initramfs.build(modules=kernel.modules, release=kernel.release, deadline=deadline)
    return initramfs.build(deadline=deadline)


def _disk(options: GuestOptions) -> Path | None:
    if options.disk is None:
        return None
    disk = absolute(options.disk)
    # A block device is as good as a file.
    if not holds(disk.exists) or disk.is_dir():
        raise UsageError(
            f"{option('disk', options.disk)}: there is no disk image {disk}",
            hint=f"make one: qemu-img create -f qcow2 {disk} 1G",
        )
    return disk


def _without_meaning(options: GuestOptions) -> tuple[str, ...]:
    return (
        ("nix's options mean nothing for this guest: only flakes are built by nix",)
        if options.nix_args
        else ()
    )
