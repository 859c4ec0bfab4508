"""Guests that vmdebug boots with its own initramfs and QEMU command line: a tree, an image, `builtin`."""

from __future__ import annotations

from pathlib import Path

from vmdebug import arch, cache
from vmdebug.channel.agent.program import AGENT
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError
from vmdebug.guest import DEFAULT_MEMORY_MIB, Guest, Kernel, LaunchSpec, OwnMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.kernel_parameters import console_notes, parameters
from vmdebug.paths import absolute, or_false
from vmdebug.progress import Report
from vmdebug.sources import firmware, initramfs, naming, userland
from vmdebug.sources.kernels import image, replacements, tree, unified
from vmdebug.spelling import option


def resolve(
    guest: Guest, options: GuestOptions, *, report: Report, deadline: Deadline, dry_run: bool = False
) -> LaunchSpec:
    """Return the LaunchSpec of a kernel with vmdebug's initramfs.

    Args:
        guest: A tree, an image, or `builtin`.
        options: The user's options.
        report: Called when the guest's agent is compiled.
        deadline: When to give up making the initramfs.
        dry_run: Whether to make no root file system.

    Raises:
        UsageError: a file does not exist, or has the wrong type.
        HostError: a program is missing on this machine.
        MismatchError: symbols and kernel are from different builds.
        DeadlineError: making the initramfs took too long.
    """
    name = naming.vm_name(guest, options)
    # If the user gives a kernel, the guest's own need not exist: `--kernel TREE` works before `kernel build`.
    kernel = replacements.symbols(replacements.kernel(options) or _kernel(guest, options), options)
    agent, lacking = _agent(kernel, report, deadline)
    whole = unified.read(Path(guest.location)) if guest.kind == "image" and options.kernel is None else None
    row = arch.by_name(kernel.arch)
    kernel, modules = userland.kernel_with_modules(kernel, options)
    root, first, unknown = userland.root(
        options, kernel, modules, report=report, deadline=deadline, dry_run=dry_run
    )
    shares, also, shared = userland.shared(options, kernel, modules)
    other, said = userland.initrd(options, kernel)
    used = whole is not None and whole.startable and other is None and root is None and not options.module
    own_init = other is None and not used and not userland.replaced(options)
    nics, drivers, unsure = userland.nics(options, kernel, modules if own_init else None, own_init=own_init)
    if whole is not None and used:
        parts = {"initrd": whole.initrd} if options.firmware is None else {"unified": whole.file}
    else:
        first = (*first, *also, *drivers)
        packed, brought = userland.packed_modules(
            kernel, None if other else modules, first, options, report=report, deadline=deadline
        )
        said = (*said, *brought)
        made = other or initramfs.build(
            modules=packed.archive if packed is not None else None,
            agent=agent,
            agent_tty=row.second_console,
            root=root,
            shares=shares,
            deadline=deadline,
        )
        parts = {"initrd": made, "modules": packed.image if packed is not None else None}
    machine = OwnMachine(
        disk=_disk(options), firmware=firmware.find(row, options), own_init=own_init, **parts
    )
    words = parameters(row, kaslr=options.kaslr, append=options.append)
    words = (*(whole.parameters if whole is not None else ()), *userland.for_init(root, row), *words)
    return LaunchSpec(
        name=name,
        guest=options.table or guest.words,
        machine=machine,
        kernel=kernel,
        parameters=words,
        root=root,
        shares=shares,
        nics=nics,
        halt=options.halt,
        accel=options.accel,
        memory=options.memory or DEFAULT_MEMORY_MIB,
        cpus=options.cpus or 1,
        tcp=options.tcp,
        trace_ready=options.trace_ready,
        qemu_args=options.qemu_args,
        notes=(
            *((whole.note(started=machine.unified is not None, used=used),) if whole is not None else ()),
            *replacements.notes(kernel),
            *(userland.unreachable(kernel, row) if other is None and not used else ()),
            *unknown,
            *said,
            *shared,
            *userland.unshared(shares, ours=other is None and not used),
            *unsure,
            *_ineffective(options),
            *userland.unmounted(options, words, ours=other is None and not used),
            *console_notes(row, words),
            *(lacking if other is None else ()),
        ),
    )


def _kernel(guest: Guest, options: GuestOptions) -> Kernel:
    match guest.kind:
        case "tree":
            return tree.kernel(Path(guest.location), force=options.force)
        case "image":
            return image.kernel(Path(guest.location), search=options.vmlinux is None, force=options.force)
        case "builtin":
            # Only the builtin guest needs the Python modules that build kernels.
            from vmdebug.sources import builtin  # noqa: PLC0415

            return builtin.kernel(force=options.force)
        case _:
            raise AssertionError(guest)


def _agent(kernel: Kernel, report: Report, deadline: Deadline) -> tuple[Path | None, tuple[str, ...]]:
    """Return the agent's binary; or None, and a note with the reason."""
    try:
        where = cache.directory("agent")
        return AGENT.find(kernel.arch, where, report=report, deadline=deadline), ()
    except HostError as error:
        why = f"{error.message} ({error.hint})" if error.hint else error.message
        return None, (f"exec uses the serial line, one command at a time: {why}",)


def _disk(options: GuestOptions) -> Path | None:
    if options.disk is None:
        return None
    disk = absolute(options.disk)
    # A block device is allowed too.
    if not or_false(disk.exists) or disk.is_dir():
        raise UsageError(
            f"{option('disk', options.disk)}: there is no disk image {disk}",
            hint=f"make one: qemu-img create -f qcow2 {disk} 1G",
        )
    return disk


def _ineffective(options: GuestOptions) -> tuple[str, ...]:
    return (
        ("the options for nix have no effect: nix builds only guests of flakes",) if options.nix_args else ()
    )
