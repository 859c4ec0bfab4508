"""Guests that vmdebug boots with its own initramfs and QEMU command line: a tree, an image, `builtin`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vmdebug import arch, cache
from vmdebug.channel.agent.program import AGENT
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, UsageError
from vmdebug.guest import DEFAULT_MEMORY_MIB, Guest, Kernel, LaunchSpec, OwnMachine, Root, Share
from vmdebug.guest_options import GuestOptions
from vmdebug.kernel_parameters import RECORDED_PARAMETERS, console_notes, parameters
from vmdebug.network import Nic
from vmdebug.paths import absolute, or_false
from vmdebug.progress import Report
from vmdebug.recording import store
from vmdebug.sources import firmware, initramfs, naming, userland
from vmdebug.sources.guest_modules.module_set import ModuleSet
from vmdebug.sources.kernels import image, replacements, tree, unified
from vmdebug.sources.kernels.unified import Unified
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
    whole = unified.read(Path(guest.location)) if guest.kind == "image" and options.kernel is None else None
    row = arch.by_name(kernel.arch)
    kernel, modules = userland.kernel_with_modules(kernel, options)
    boot = _boot(options, kernel, modules, whole, report=report, deadline=deadline, dry_run=dry_run)
    words = parameters(row, kaslr=options.kaslr, append=options.append)
    recorded = RECORDED_PARAMETERS if options.record is not None else ()
    words = (
        *(whole.parameters if whole is not None else ()),
        *userland.for_init(boot.root, row),
        *recorded,
        *words,
    )
    return LaunchSpec(
        name=name,
        guest=options.table or guest.words,
        machine=boot.machine,
        kernel=kernel,
        parameters=words,
        root=boot.root,
        shares=boot.shares,
        nics=boot.nics,
        halt=options.halt,
        accel=options.accel,
        memory=options.memory or DEFAULT_MEMORY_MIB,
        cpus=options.cpus or 1,
        tcp=options.tcp,
        trace_ready=options.trace_ready,
        record=store.place(options.record, name) if options.record is not None else None,
        qemu_args=options.qemu_args,
        notes=(
            *boot.about,
            *replacements.notes(kernel),
            *boot.notes,
            *_ineffective(options),
            *userland.unmounted(options, words, ours=boot.ours),
            *console_notes(row, words),
        ),
    )


class _Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What a kernel boots into.

    Args:
        machine: The machine, with the initramfs.
        root: The root file system.
        shares: The directories of this machine.
        nics: The network cards.
        ours: Whether the initramfs is vmdebug's.
        about: What is used of a unified kernel image, for the user.
        notes: About the rest, for the user.
    """

    machine: OwnMachine
    root: Root | None
    shares: tuple[Share, ...]
    nics: tuple[Nic, ...]
    ours: bool
    about: tuple[str, ...]
    notes: tuple[str, ...]


def _boot(
    options: GuestOptions,
    kernel: Kernel,
    modules: ModuleSet | None,
    whole: Unified | None,
    *,
    report: Report,
    deadline: Deadline,
    dry_run: bool,
) -> _Boot:
    """Return what a kernel boots into; `whole` is the unified kernel image that it comes from."""
    row = arch.by_name(kernel.arch)
    root, first, unknown = userland.root(
        options, kernel, modules, report=report, deadline=deadline, dry_run=dry_run
    )
    shares, also, shared = userland.shared(options, kernel, modules)
    other, said = userland.initrd(options, kernel)
    used = whole is not None and whole.startable and other is None and root is None and not options.module
    ours = other is None and not used
    own_init = ours and not userland.replaced(options)
    nics, drivers, unsure = userland.nics(options, kernel, modules if own_init else None, own_init=own_init)
    agent, lacking = _agent(kernel, report, deadline) if ours else (None, ())
    initrd, module_image, started = other, None, None
    if whole is not None and used:
        initrd, started = (whole.initrd, None) if options.firmware is None else (None, whole.file)
    if ours:
        first = (*first, *also, *drivers)
        packed, brought = userland.packed_modules(
            kernel, modules, first, options, report=report, deadline=deadline
        )
        said = (*said, *brought)
        module_image = packed.image if packed is not None else None
        initrd = initramfs.build(
            modules=packed.archive if packed is not None else None,
            agent=agent,
            agent_tty=row.second_console,
            root=root,
            shares=shares,
            deadline=deadline,
        )
    machine = OwnMachine(
        disk=_disk(options),
        firmware=firmware.find(row, options),
        initrd=initrd,
        modules=module_image,
        unified=started,
        own_init=own_init,
    )
    return _Boot(
        machine=machine,
        root=root,
        shares=shares,
        nics=nics,
        ours=ours,
        about=(whole.note(started=started is not None, used=used),) if whole is not None else (),
        notes=(
            *(userland.unreachable(kernel, row) if ours else ()),
            *unknown,
            *said,
            *shared,
            *userland.unshared(shares, ours=ours),
            *unsure,
            *lacking,
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
