"""A guest that a NixOS VM runner starts: `bin/run-NAME-vm`, with the system it boots beside it.

Rests on nixpkgs' nixos/modules/virtualisation/qemu-vm.nix. The package that
holds the script has `system`, a link to the toplevel with `kernel`, `initrd` and
`kernel-modules`. The script file itself is a store path of its own, which is
always named `run-nixos-vm`: NAME is in the link to it, and in the script's text.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmdebug import arch, kimage
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.guest import Guest, GuestOptions, Kernel, LaunchSpec, RunnerMachine, parameters
from vmdebug.paths import absolute
from vmdebug.progress import Report
from vmdebug.sources import naming, nix
from vmdebug.sources.configuration import requirements
from vmdebug.sources.kernels import dev_output, replacements
from vmdebug.spelling import option


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner script, with what it boots.

    Args:
        script: Its absolute path, by the name that carries NAME.
        origin: Where it came from, in words for messages.
        system_name: NAME, the guest's `config.system.name`.
        image: The kernel image that it boots, every link followed.
        modules: Directory under which that kernel's `.ko` files are, or None.
        text: What the script says.
    """

    script: Path
    origin: str
    system_name: str
    image: Path
    modules: Path | None
    text: str


def resolve(guest: Guest, options: GuestOptions, *, report: Report, deadline: Deadline) -> LaunchSpec:
    """Return what starts the guest of a runner script, or of a directory that holds `bin/run-NAME-vm`.

    The symbols are in the kernel's `dev` output, which a runner does not refer to: nix is asked for it.

    Raises:
        UsageError: there is no such script, it does not say what it boots, or an option cannot be right.
        HostError: a file may not be read. That nix is not installed is no error, but a note.
        MismatchError: kernel and symbols do not belong together.
        DeadlineError: nix took too long.
    """
    found = read(Path(guest.location), origin=f"the runner {guest.words}")
    dev: Path | str = ""
    if wants_symbols(options):
        dev = dev_of(found.image, report=report, deadline=deadline)
    return spec(found, dev, guest, options)


def read(location: Path, *, origin: str) -> Runner:
    """Return the runner of a script, or of the directory that `bin/run-NAME-vm` is in.

    Args:
        location: The script or the directory.
        origin: Where it came from, in words for messages: "the flake .#base-nixos".

    Raises:
        UsageError: there is none, or it cannot be told what it boots.
    """
    script = _script(location)
    try:
        text = script.read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"{script} cannot be read: {error.strerror}", hint="is the path right?") from error
    if not os.access(script, os.X_OK):
        raise UsageError(f"{script} is not executable", hint=f"chmod +x {script}, if it is the runner")
    system = _system(script, text)
    modules = system / "kernel-modules/lib/modules"
    return Runner(
        script=script,
        origin=origin,
        system_name=_system_name(script, text),
        image=(system / "kernel").resolve(),
        modules=modules if modules.is_dir() else None,
        text=text,
    )


def _script(location: Path) -> Path:
    if location.is_dir():
        scripts = sorted(location.glob("bin/run-*-vm"))
        if len(scripts) != 1:
            names = ", ".join(path.name for path in scripts) or "none"
            raise UsageError(
                f"{location} should hold one script bin/run-NAME-vm; found: {names}",
                hint="give the script itself, or build config.system.build.vm",
            )
        location = scripts[0]
    # `result` is followed, since the next build points it elsewhere; the script's own link is not,
    # since `system` lies beside it and its name holds NAME.
    return location.parent.resolve() / location.name


_NAMED = re.compile(r"run-(.+)-vm")
_SAYS_NAME = re.compile(r"^\s+-name (\S+) ", re.MULTILINE)


def _system_name(script: Path, text: str) -> str:
    found = _NAMED.fullmatch(script.name) or _SAYS_NAME.search(text)
    if found is None:
        raise UsageError(
            f"cannot tell the system's name: {script.name} is not run-NAME-vm, and it has no `-name`",
            hint="give bin/run-NAME-vm of what `nix build` made",
        )
    return found[1]


_SAYS_SYSTEM = re.compile(r"\$\{NIXPKGS_QEMU_KERNEL_\w+:-(/[^}\s]+)/kernel\}")


def _system(script: Path, text: str) -> Path:
    """Return the toplevel: the one beside the script, or the one that the script names."""
    systems = [script.parent.parent / "system", *map(Path, _SAYS_SYSTEM.findall(text))]
    for system in systems:
        if (system / "kernel").exists():
            return system
    raise UsageError(
        f"cannot tell which kernel {script} boots: there is no {systems[-1]}/kernel",
        hint="give bin/run-NAME-vm where `nix build` made it, with `system` beside `bin`",
    )


def wants_symbols(options: GuestOptions) -> bool:
    """Whether the runner's own kernel has to be asked for symbols: not where its user gives others."""
    return options.kernel is None and options.vmlinux is None


def dev_of(image: Path, *, report: Report, deadline: Deadline) -> Path | str:
    """Return the `dev` output of the derivation that made a kernel image.

    Asked by what boots, and not by an attribute of a configuration, so it is the right one
    even where `virtualisation.vmVariant` changes the kernel.

    Returns:
        The store path, or why there is none.

    Raises:
        DeadlineError: nix took too long.
    """
    output = nix.store_path(image)
    if output is None:
        return f"{image} is not in a Nix store"
    try:
        drv = nix.run(
            nix.deriver(output),
            what=f"asking which derivation made {image}",
            report=report,
            deadline=deadline,
        ).strip()
        if not drv.endswith(".drv"):
            return f"nix does not know which derivation made {output}"
        what = f"building the symbols of {nix.name(drv)}"
        made = nix.run(nix.realise(drv, "dev"), what=what, report=report, deadline=deadline)
    except HostError as error:
        return f"{error.message}, and the kernel's `dev` output is found by it"
    except BuildError as error:
        return f"nix has no `dev` output for {output}: {nix.reason(error)}"
    return Path(made.strip())


def spec(found: Runner, dev: Path | str, guest: Guest, options: GuestOptions) -> LaunchSpec:
    """Return what starts a runner with the options of its user.

    Args:
        found: The runner.
        dev: What `dev_of` returned; "" where it was not asked.
        guest: What GUEST names.
        options: What its user said; `--kernel`, `--vmlinux` and `--gdb-scripts` are applied here.

    Raises:
        UsageError: an option cannot be right for a runner; or the kernel that replaces its own has not built
            in what it boots with.
        MismatchError: kernel and symbols do not belong together.
        HostError: a file may not be read.
    """
    bare = Kernel(
        image=found.image,
        arch=kimage.read_image(found.image).arch,
        origin=found.origin,
        modules=found.modules,
    )
    own, why = with_symbols(bare, dev, force=options.force)
    kernel = replacements.apply(own, options)
    unsure = ""
    if options.kernel is not None and not options.force:
        unsure = requirements.refuse(kernel, found.script, found.text, guest.words)
    if kernel.vmlinux is None and why:
        notes: tuple[str, ...] = (f"no symbols: {why}; give them: {option('vmlinux', 'FILE')}",)
    else:
        notes = replacements.notes(kernel)
    return LaunchSpec(
        name=naming.vm_name(guest, options),
        guest=options.table or guest.words,
        machine=RunnerMachine(
            script=found.script,
            system_name=found.system_name,
            kernel_override=options.kernel is not None,
            disk=_disk(options),
        ),
        kernel=kernel,
        parameters=parameters(arch.by_name(kernel.arch), kaslr=options.kaslr, append=options.append),
        halt=options.halt,
        accel=options.accel,
        memory=options.memory,
        cpus=options.cpus,
        tcp=options.tcp,
        qemu_args=options.qemu_args,
        notes=(*notes, *filter(None, [unsure]), *_deaf(found, options)),
    )


def with_symbols(bare: Kernel, dev: Path | str, *, force: bool) -> tuple[Kernel, str]:
    """Return a kernel that Nix built with what its image says and its `dev` output has.

    Args:
        bare: Its image, architecture, origin and modules.
        dev: What `dev_of` returned; "" where it was not asked.
        force: Whether an image and symbols of two builds will do.

    Returns:
        The kernel, and why it has no symbols; "" where it has, or nobody asked.

    Raises:
        MismatchError: image and symbols are of two builds.
        HostError: a file may not be read.
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
        # The script's readlink would fail, and it would go on without a disk.
        raise UsageError(
            f"{option('disk', options.disk)}: there is no directory {disk.parent}", hint="make it first"
        )
    return disk


def _deaf(found: Runner, options: GuestOptions) -> tuple[str, ...]:
    """Return notes about what the script does not take: one that starts a boot loader takes no kernel."""
    unheard = []
    if "QEMU_KERNEL_PARAMS" not in found.text:
        unheard.append(f"kernel parameters may have no effect: {found.script} has no QEMU_KERNEL_PARAMS")
    if options.kernel is not None and "NIXPKGS_QEMU_KERNEL_" not in found.text:
        unheard.append(f"{option('kernel')} may have no effect: {found.script} has no NIXPKGS_QEMU_KERNEL_…")
    return tuple(unheard)
