"""A guest of a NixOS VM runner, the script `bin/run-NAME-vm`.

See nixpkgs' nixos/modules/virtualisation/qemu-vm.nix. The package with the script also has `system`, a link
to the toplevel with `kernel`, `initrd` and `kernel-modules`. The script itself is a store path of its own,
which is always called `run-nixos-vm`: NAME is in the link to it, and in the script's text.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmdebug import arch, cache, kimage, network
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.guest import Guest, Kernel, LaunchSpec, RunnerMachine
from vmdebug.guest_options import GuestOptions
from vmdebug.kernel_parameters import console_notes, parameters
from vmdebug.network import Nic
from vmdebug.paths import absolute
from vmdebug.progress import Report
from vmdebug.roots import refusal, shares
from vmdebug.sources import naming, nix
from vmdebug.sources.configuration import lacks
from vmdebug.sources.kernels import dev_output, modules, replacements
from vmdebug.sources.nixos import runner_modules, script
from vmdebug.spelling import option


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner script and what it boots.

    Args:
        script: Its absolute path, with NAME.
        origin: Where it comes from, for messages.
        system_name: NAME, the guest's `config.system.name`.
        image: The kernel image that it boots, with all links resolved.
        modules: The directory with that kernel's modules, or None.
        text: The text of the script.
        vlans: The test driver's networks that are not there; see `script.vlans`.
    """

    script: Path
    origin: str
    system_name: str
    image: Path
    modules: Path | None
    text: str
    vlans: tuple[str, ...] = ()


def resolve(guest: Guest, options: GuestOptions, *, report: Report, deadline: Deadline) -> LaunchSpec:
    """Return what starts the guest of a runner script, or of a directory with `bin/run-NAME-vm`.

    The symbols are in the kernel's `dev` output, to which the runner has no reference: nix finds it.

    Raises:
        UsageError: there is no such script, its kernel is unknown, or an option is invalid.
        HostError: a file cannot be read. A missing nix only adds a note.
        MismatchError: the symbols do not match the kernel.
        DeadlineError: nix took too long.
    """
    found = read(Path(guest.location), origin=f"the runner {guest.words}")
    dev: Path | str = ""
    if wants_symbols(options):
        dev = dev_of(found.image, report=report, deadline=deadline)
    return spec(found, dev, guest, options, report=report, deadline=deadline)


def read(location: Path, *, origin: str) -> Runner:
    """Return the runner of a script, or of a directory with `bin/run-NAME-vm`.

    Args:
        location: The script or the directory.
        origin: Where it comes from, for messages: "the flake .#base-nixos".

    Raises:
        UsageError: there is no runner, or its kernel is unknown.
    """
    path = _script(location)
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="is the path right?") from error
    if not os.access(path, os.X_OK):
        raise UsageError(f"{path} is not executable", hint=f"if it is the runner: chmod +x {path}")
    system = _system(path, text)
    name = _system_name(path, text)
    absent = script.vlans(text, inherited=os.environ)
    if absent:
        text = script.detached(text, absent)
        path = script.copy(path, text, system, cache.directory("runners"))
    installed = system / "kernel-modules/lib/modules"
    return Runner(
        script=path,
        origin=origin,
        system_name=name,
        image=(system / "kernel").resolve(),
        modules=installed if installed.is_dir() else None,
        text=text,
        vlans=absent,
    )


def _script(location: Path) -> Path:
    if location.is_dir():
        scripts = sorted(location.glob("bin/run-*-vm"))
        if len(scripts) != 1:
            names = ", ".join(path.name for path in scripts) or "none"
            raise UsageError(
                f"{location} should have one script bin/run-NAME-vm; found: {names}",
                hint="give the script itself, or build config.system.build.vm",
            )
        location = scripts[0]
    # Resolve `result`, since the next build changes it. Do not resolve the script's own link: `system` is
    # beside the link, and NAME is in its name.
    return location.parent.resolve() / location.name


_NAMED = re.compile(r"run-(.+)-vm")
_SAYS_NAME = re.compile(r"^\s+-name (\S+) ", re.MULTILINE)


def _system_name(script: Path, text: str) -> str:
    found = _NAMED.fullmatch(script.name) or _SAYS_NAME.search(text)
    if found is None:
        raise UsageError(
            f"the system's name is unknown: {script.name} is not run-NAME-vm, and has no `-name`",
            hint="give bin/run-NAME-vm in the result of `nix build`",
        )
    return found[1]


_SAYS_SYSTEM = re.compile(r"\$\{NIXPKGS_QEMU_KERNEL_\w+:-(/[^}\s]+)/kernel\}")


def _system(script: Path, text: str) -> Path:
    """Return the toplevel beside the script, or the one that the script names."""
    systems = [script.parent.parent / "system", *map(Path, _SAYS_SYSTEM.findall(text))]
    for system in systems:
        if (system / "kernel").exists():
            return system
    raise UsageError(
        f"the kernel that {script} boots is unknown: there is no {systems[-1]}/kernel",
        hint="give bin/run-NAME-vm in the result of `nix build`, with `system` beside `bin`",
    )


def wants_symbols(options: GuestOptions) -> bool:
    """Whether the symbols of the runner's own kernel are needed: not if the user gives others."""
    return options.kernel is None and options.vmlinux is None


def dev_of(image: Path, *, report: Report, deadline: Deadline) -> Path | str:
    """Return the `dev` output of the derivation that made a kernel image.

    This starts from the image that boots, not from an attribute of a configuration, so it is right even if
    `virtualisation.vmVariant` changes the kernel.

    Returns:
        The store path, or a text that says why there is none.

    Raises:
        DeadlineError: nix took too long.
    """
    output = nix.store_path(image)
    if output is None:
        return f"{image} is not in a Nix store"
    try:
        drv = nix.run(
            nix.deriver(output),
            what=f"finding the derivation of {image}",
            report=report,
            deadline=deadline,
        ).strip()
        if not drv.endswith(".drv"):
            return f"nix does not know which derivation made {output}"
        what = f"building the symbols of {nix.name(drv)}"
        made = nix.run(nix.realise(drv, "dev"), what=what, report=report, deadline=deadline)
    except HostError as error:
        return f"{error.message}, and it is needed to find the kernel's `dev` output"
    except BuildError as error:
        if nix.lacks_output(error):
            return (
                f"{nix.name(str(output))} has no `dev` output, which nixpkgs makes only for kernels with"
                " modules; a kernel in vmdebug.kernels (nixosModules.kernel) always has it"
            )
        return f"nix has no `dev` output for {output}: {nix.reason(error)}"
    return Path(made.strip())


def spec(
    found: Runner,
    dev: Path | str,
    guest: Guest,
    options: GuestOptions,
    *,
    report: Report,
    deadline: Deadline,
) -> LaunchSpec:
    """Return what starts a runner with the options of its user.

    Args:
        found: The runner.
        dev: The result of `dev_of`; "" if it was not called.
        guest: What GUEST names.
        options: The user's options; this applies `kernel`, `vmlinux` and `gdb_scripts`.
        report: Called when modules are packed.
        deadline: When to give up packing them.

    Raises:
        UsageError: an option is invalid for a runner; or the replacement kernel lacks built-in drivers that
            the guest needs to boot.
        MismatchError: the symbols do not match the kernel.
        HostError: a file cannot be read.
    """
    script.check_supported(found.text, accel=options.accel)
    _refuse(found, options)
    nics = _nics(found, options)
    kernel, brought, notes = _kernel(found, dev, guest, options, report=report, deadline=deadline)
    row = arch.by_name(kernel.arch)
    # The script chooses the guest's memory, which virtiofsd would have to map.
    shared = shares.resolve(options, lambda _: False)
    mounts = shares.for_systemd(shared)
    words = (*brought.parameters, *mounts, *parameters(row, kaslr=options.kaslr, append=options.append))
    return LaunchSpec(
        name=naming.vm_name(guest, options),
        guest=options.table or guest.words,
        machine=RunnerMachine(
            script=found.script,
            system_name=found.system_name,
            kernel_override=options.kernel is not None,
            disk=_disk(options),
            initrd=brought.initrd,
            modules=brought.image,
        ),
        kernel=kernel,
        parameters=words,
        shares=shared,
        nics=nics,
        halt=options.halt,
        accel=options.accel,
        memory=options.memory,
        cpus=options.cpus,
        tcp=options.tcp,
        trace_ready=options.trace_ready,
        qemu_args=options.qemu_args,
        notes=(
            *notes,
            *_ignored(found, options),
            *shares.note(shared),
            *console_notes(row, words),
            *_stripped(kernel),
            *script.notes(found.text, found.vlans),
        ),
    )


def _kernel(
    found: Runner, dev: Path | str, guest: Guest, options: GuestOptions, *, report: Report, deadline: Deadline
) -> tuple[Kernel, runner_modules.Brought, tuple[str, ...]]:
    """Return the kernel with its symbols, the modules that come with it, and notes about both.

    Raises:
        VmdebugError: as `spec` does.
    """
    bare = Kernel(
        image=found.image,
        arch=kimage.read_image(found.image).arch,
        origin=found.origin,
        modules=found.modules,
    )
    own, why = with_symbols(bare, dev, force=options.force)
    kernel, brought = runner_modules.bring(
        replacements.apply(own, options),
        found.text,
        options,
        found.modules,
        report=report,
        deadline=deadline,
    )
    unsure = ""
    if options.kernel is not None and not options.force:
        unsure = lacks.check_runner(kernel, found.script, found.text, guest.words)
    if kernel.vmlinux is None and why:
        notes: tuple[str, ...] = (f"{replacements.NONE}{why}; give them: {option('vmlinux', 'FILE')}",)
    else:
        notes = replacements.notes(kernel)
    return kernel, brought, (*notes, *brought.notes, *filter(None, [unsure]))


def _refuse(found: Runner, options: GuestOptions) -> None:
    """Refuse options about what vmdebug's own QEMU command line boots.

    Raises:
        UsageError: one is given.
    """
    why = f"is for guests whose QEMU command line vmdebug makes; {found.script} makes its own"
    uefi = "set virtualisation.useEFIBoot = true in the system"
    refusal.refuse(options, ("firmware",), why, hint=uefi)
    own = ("initrd", "root", "root_dev", "root_image", "init", "login", "keep")
    refusal.refuse(options, own, why, hint="boot the system's kernel as an image, or set it in the system")


def _nics(found: Runner, options: GuestOptions) -> tuple[Nic, ...]:
    """Return the script's own network card with the ports to forward.

    Raises:
        UsageError: the script cannot forward ports, or the user wants other networks.
    """
    if options.net:
        raise UsageError(
            f"{option('net', options.net[0])} is for guests whose QEMU command line vmdebug makes;"
            f" {found.script} makes its own, with QEMU's user network",
            hint=f"ports of that can be forwarded: {option('forward', 'HOST:GUEST')}; other networks are"
            " virtualisation.vlans in the system, or QEMU's arguments",
        )
    if options.forward and network.RUNNER_VARIABLE not in found.text:
        raise UsageError(
            f"{option('forward', options.forward[0])}: {found.script} takes no ports to forward:"
            f" it has no {network.RUNNER_VARIABLE}",
            hint="set virtualisation.forwardPorts in the system",
        )
    return network.parse((), options.forward)


def with_symbols(bare: Kernel, dev: Path | str, *, force: bool) -> tuple[Kernel, str]:
    """Return a kernel that Nix built, with the facts in its image and the files in its `dev` output.

    Args:
        bare: The kernel with image, architecture, origin and modules.
        dev: The result of `dev_of`; "" if it was not called.
        force: Whether to accept symbols from another build.

    Returns:
        The kernel, and why it has no symbols; "" if it has, or `dev_of` was not called.

    Raises:
        MismatchError: image and symbols are from different builds.
        HostError: a file cannot be read.
    """
    says = kimage.read_image(bare.image)
    kernel = msgspec.structs.replace(bare, build_id=says.build_id, release=says.release)
    if isinstance(dev, str):
        return kernel, dev
    has = dev_output.read(dev)
    if has.vmlinux is None:
        return kernel, f"there is no vmlinux in {dev}"
    kimage.check(kernel.image, has.vmlinux, force=force)
    return msgspec.structs.replace(
        kernel, vmlinux=has.vmlinux, gdb_scripts=has.gdb_scripts, source=has.source
    ), ""


def _disk(options: GuestOptions) -> Path | None:
    if options.disk is None:
        return None
    disk = absolute(options.disk)
    if not disk.parent.is_dir():
        # Otherwise the script's readlink fails, and it continues without a disk.
        raise UsageError(
            f"{option('disk', options.disk)}: there is no directory {disk.parent}", hint="create it first"
        )
    return disk


def _stripped(kernel: Kernel) -> tuple[str, ...]:
    """Return a note if the kernel has debug information, and its modules have none, as in nixpkgs."""
    if kernel.vmlinux is None or not kimage.dwarf(kernel.vmlinux).version or not modules.stripped(kernel):
        return ()
    note = (
        "the modules have no debug information: GDB knows neither lines nor types in them; nixpkgs strips it,"
        " unless the kernel has vmdebug.kernels.NAME.stripModules = false"
    )
    return (note,)


def _ignored(found: Runner, options: GuestOptions) -> tuple[str, ...]:
    """Return notes about options that the script ignores: one that starts a boot loader takes no kernel."""
    ignored = []
    if "QEMU_KERNEL_PARAMS" not in found.text:
        ignored.append(f"kernel parameters may have no effect: {found.script} has no QEMU_KERNEL_PARAMS")
    if options.kernel is not None and "NIXPKGS_QEMU_KERNEL_" not in found.text:
        ignored.append(f"{option('kernel')} may have no effect: {found.script} has no NIXPKGS_QEMU_KERNEL_…")
    return tuple(ignored)
