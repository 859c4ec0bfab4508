"""What a guest with vmdebug's QEMU command line boots into: its initramfs and its root file system."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from vmdebug import addressing, network, roots
from vmdebug.arch import Arch
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel, Root, Share
from vmdebug.guest_options import NO_INIT, NO_MODULES, GuestOptions
from vmdebug.network import Nic
from vmdebug.paths import absolute, or_false
from vmdebug.progress import Report
from vmdebug.roots import Making, shares
from vmdebug.sources.configuration import dotconfig, lacks, requirements
from vmdebug.sources.configuration.requirements import Need
from vmdebug.sources.guest_modules import bundle, extra, module_set, staging
from vmdebug.sources.guest_modules.bundle import Bundle, Wanted
from vmdebug.sources.guest_modules.module_set import ModuleSet
from vmdebug.spelling import option


def root(
    options: GuestOptions,
    kernel: Kernel,
    modules: ModuleSet | None,
    *,
    report: Report,
    deadline: Deadline,
    dry_run: bool = False,
) -> tuple[Root | None, tuple[str, ...], tuple[str, ...]]:
    """Return the root file system, the modules that mount it, and a note if it is unknown whether they can.

    Args:
        options: The user's options.
        kernel: The guest's kernel.
        modules: The modules that the guest gets.
        report: Called with each long step.
        deadline: When to give up making an image.
        dry_run: Whether to make nothing.

    Raises:
        UsageError: the kernel cannot mount it.
    """
    if options.root is not None and options.initrd is not None:
        raise UsageError(
            f"{option('root', options.root)} needs vmdebug's initramfs, which mounts it, and"
            f" {option('initrd', options.initrd)} replaces that",
            hint="give one of them",
        )

    making = Making(_supports(kernel, modules), kernel.arch, report, deadline, dry_run)
    root = roots.resolve(options, making)
    if root is None:
        return None, (), ()
    root = _with_login(root, options)
    return root, *_needed(requirements.of_root(root), kernel, modules, options, option("root", root.words))


def shared(
    options: GuestOptions, kernel: Kernel, modules: ModuleSet | None
) -> tuple[tuple[Share, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the directories of this machine that the guest gets, the modules that mount them, and notes.

    Args:
        options: The user's options.
        kernel: The guest's kernel.
        modules: The modules that the guest gets.

    Raises:
        UsageError: there is no such directory, or the kernel cannot mount it.
    """
    found = shares.resolve(options, _supports(kernel, modules))
    if not found:
        return (), (), ()
    what = option("share", options.share[0])
    first, unknown = _needed(requirements.of_shares(found), kernel, modules, options, what)
    return found, first, (*shares.note(found), *unknown)


def _needed(
    needs: Iterable[Need], kernel: Kernel, modules: ModuleSet | None, options: GuestOptions, what: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules that meet needs of an option, and a note if it is unknown whether the rest is met.

    Raises:
        UsageError: the kernel does not meet one.
    """
    loadable = modules.names() if modules is not None else frozenset[str]()
    wanted = tuple(needs)
    as_modules = tuple(need.module for need in wanted if need.module in loadable)
    if options.force:
        return as_modules, ()
    built_in = tuple(need for need in wanted if need.module not in as_modules)
    unknown = lacks.check_own(kernel, built_in, options.source, what=what)
    return as_modules, (unknown,) if unknown else ()


def _supports(kernel: Kernel, modules: ModuleSet | None) -> Callable[[str], bool | None]:
    """Return a function that tells whether a kernel has an option built in, or as one of its modules."""
    loadable = modules.names() if modules is not None else frozenset[str]()
    configuration = dotconfig.of(kernel)

    def supports(name: str) -> bool | None:
        if configuration is None:
            return None
        module = "virtiofs" if name == "VIRTIO_FS" else name.removesuffix("_FS").lower()
        return configuration.value(name) == "y" or module in loadable

    return supports


def unshared(mounted: Sequence[Share], *, ours: bool) -> tuple[str, ...]:
    """Return a note about how to mount directories if vmdebug's initramfs is not there to do it."""
    if ours or not mounted:
        return ()
    lines = "; ".join(
        f"mount -t {each.transport} {'-o trans=virtio ' if each.transport == '9p' else ''}"
        f"{each.tag} {each.mount_point}"
        for each in mounted
    )
    return (f"only vmdebug's initramfs mounts shared directories; in the guest: {lines}",)


def _with_login(root: Root, options: GuestOptions) -> Root:
    if options.login and root.init == NO_INIT:
        raise UsageError(
            f"{option('login', True)}: {option('root', root.words)} starts no init that asks for a login",
            hint=f"name one, {option('init', '/sbin/init')}, or leave it out: the console has a root shell",
        )
    return msgspec.structs.replace(root, login=options.login)


def for_init(root: Root | None, row: Arch) -> tuple[str, ...]:
    """Return the kernel parameters for the init of a root file system; others ignore those of systemd.

    An fstab may name disks that this guest does not have. Unless the user wants a login, the shell on the
    console is vmdebug's. See kernel-command-line(7) of systemd.
    """
    if root is None or root.init == NO_INIT:
        return ()
    getty = () if root.login else (f"systemd.mask=serial-getty@{row.console}.service",)
    return (*getty, "fstab=no")


def initrd(options: GuestOptions, kernel: Kernel) -> tuple[Path | None, tuple[str, ...]]:
    """Return an initramfs that replaces vmdebug's, and notes about it.

    Raises:
        UsageError: there is no such file, it is no initramfs, or the kernel cannot unpack it.
    """
    if options.initrd is None:
        return None, ()
    file = absolute(options.initrd)
    what = option("initrd", options.initrd)
    if not or_false(file.is_file):
        raise UsageError(f"{what}: there is no file {file}", hint="give an initramfs: a cpio archive")
    unknown = ""
    if not options.force:
        if not requirements.is_initramfs(file):
            raise UsageError(
                f"{what}: {file} is not an initramfs", hint="give a cpio archive, as it is or compressed"
            )
        needs = requirements.of_initrd(file)
        unknown = lacks.check_own(kernel, needs, options.source, what=what)
    note = f"the initramfs is {file}: exec works if its init starts an agent, or a shell on the console"
    return file, (note, *((unknown,) if unknown else ()))


def unreachable(kernel: Kernel, row: Arch) -> tuple[str, ...]:
    """Return a note if a kernel lacks what it needs to reach vmdebug's shell, as `kernel check` says."""
    seen = lacks.lacking(kernel, requirements.own(row))
    if seen is None or not seen[0]:
        return ()
    found, origin = seen
    names = ", ".join(f"CONFIG_{lack} ({lack.need.why})" for lack in found)
    note = (
        f"warning: this kernel will not reach its shell: {names}, according to {origin}, so exec and console"
        f" will not answer; {lacks.fix_command(kernel, found)}"
    )
    return (note,)


def nics(
    options: GuestOptions, kernel: Kernel, modules: ModuleSet | None, *, own_init: bool
) -> tuple[tuple[Nic, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the network cards, the modules that are their drivers, and a note about what is unknown.

    Args:
        options: The user's options.
        kernel: The kernel.
        modules: The modules that the guest gets.
        own_init: Whether vmdebug's init configures them; another one may have the drivers as modules.

    Raises:
        UsageError: the options are wrong, or the kernel lacks a driver.
    """
    found = network.parse(options.net, options.forward)
    addressing.check_subnets(found)
    if not found:
        return (), (), ()
    if own_init:
        name = "net" if options.net else "forward"
        what = option(name, " ".join(getattr(options, name)))
        return found, *_needed(requirements.of_network(found), kernel, modules, options, what)
    configuration = dotconfig.of(kernel)
    if configuration is None or configuration.value("IP_PNP") == "y":
        return found, (), ()
    note = (
        f"the kernel itself configures no network card (CONFIG_IP_PNP is not set): the initramfs has to, or"
        f" run in the guest: {addressing.by_hand(found[0])}"
    )
    return found, (), (note,)


def replaced(options: GuestOptions) -> str:
    """Return the argument of QEMU that replaces the initramfs; "" if there is none."""
    return next((word for word in options.qemu_args if word in ("-initrd", "--initrd")), "")


def unmounted(options: GuestOptions, words: Sequence[str], *, ours: bool) -> tuple[str, ...]:
    """Return notes about an initramfs that QEMU's arguments replace, and a `root=` that nobody reads.

    Args:
        options: The user's options.
        words: The kernel parameters.
        ours: Whether the initramfs is vmdebug's, whose init mounts only `--root`.
    """
    if word := replaced(options):
        note = (
            f"the QEMU argument {word} replaces vmdebug's initramfs, and with it the agent and the"
            f" shell on the console; {option('initrd', 'FILE')} does the same, and checks the file"
        )
        return (note,)
    asked = [word for word in words if word.startswith("root=")]
    if asked and ours:
        note = (
            f"{asked[-1]} has no effect: vmdebug's initramfs mounts no such file system; use"
            f" {option('root', 'IMAGE')}, or an initramfs that mounts it: {option('initrd', 'FILE')}"
        )
        return (note,)
    return ()


def kernel_with_modules(kernel: Kernel, options: GuestOptions) -> tuple[Kernel, ModuleSet | None]:
    """Return the kernel with the modules and the symbols that the options name, and the guest's modules.

    Raises:
        UsageError: there are no such modules, or the kernel loads none.
        MismatchError: they are built for another kernel.
    """
    kernel = module_set.choose(kernel, options)
    found = None if options.modules == NO_MODULES else module_set.of(kernel)
    brought = extra.check(kernel, options)
    if not brought:
        return kernel, found
    configuration = dotconfig.of(kernel)
    if configuration is not None and configuration.value("MODULES") != "y":
        raise UsageError(
            f"{option('module', options.module[0])}: {kernel.origin} loads no modules: CONFIG_MODULES is n",
            hint="build it with CONFIG_MODULES=y",
        )
    if options.initrd is not None:
        raise UsageError(
            f"{option('module', options.module[0])} needs vmdebug's initramfs, which loads it, and"
            f" {option('initrd', options.initrd)} replaces that",
            hint="copy it when the guest runs: vmdebug cp FILE.ko VM:/tmp/",
        )
    return extra.with_symbols(kernel, brought), found or module_set.empty(kernel)


def packed_modules(
    kernel: Kernel,
    modules: ModuleSet | None,
    first: tuple[str, ...],
    options: GuestOptions,
    *,
    report: Report,
    deadline: Deadline,
) -> tuple[Bundle | None, tuple[str, ...]]:
    """Return the guest's modules, packed, and a note about them.

    Args:
        kernel: The guest's kernel.
        modules: Its modules.
        first: Those that its init loads first.
        options: The user's options.
        report: Called with each long step.
        deadline: When to give up.

    Raises:
        HostError: a module cannot be read, or this machine lacks something.
        BuildError: a program failed.
        DeadlineError: it took too long.
    """
    if modules is None:
        return None, ()
    if not first and not options.module and options.modules is None and (name := staging.lacking()):
        return None, (f"the guest has no modules: {name} is not on PATH; apt install kmod",)
    brought = tuple(absolute(each) for each in options.module)
    wanted = Wanted(modules=modules, extra=brought, load=options.load_modules, first=first)
    made = bundle.make(kernel, wanted, report=report, deadline=deadline)
    if not (modules.built or options.module or options.modules or made.image or made.lacking):
        return made, ()
    return made, (made.note(modules.directory),)
