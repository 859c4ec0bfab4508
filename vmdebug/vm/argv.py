"""Builds QEMU's command line, with one function for each family of devices; pure.

See qemu(1), or https://www.qemu.org/docs/master/system/invocation.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from vmdebug import addressing, spelling
from vmdebug.arch import Arch
from vmdebug.errors import UsageError
from vmdebug.guest import DEFAULT_MEMORY_MIB, LaunchSpec, OwnMachine
from vmdebug.vm import channels, directories, disks, network_cards, qemuargs, recorded
from vmdebug.vm.disks import DiskFormat
from vmdebug.vm.features import Features
from vmdebug.vm.qemuargs import Options, value
from vmdebug.vm.rundir import RunDir

RealAccel = Literal["kvm", "tcg"]

GDB_CHARDEV = "gdb0"
"""Id of the gdbstub's chardev; `query-chardev` returns its port."""

PROBE_MEMORY_MIB = 512

_REFUSED = {
    "gdb": "vmdebug opens the gdbstub on a socket; {tcp} opens it on 127.0.0.1:PORT",
    "s": "vmdebug opens the gdbstub on a socket; {tcp} opens it on 127.0.0.1:PORT",
    "accel": "use {kvm} or {tcg}",
    "enable-kvm": "use {kvm}",
    "daemonize": "vmdebug start already leaves QEMU in the background",
    "pidfile": "vmdebug needs its own pidfile; `vmdebug status --json` prints the pid",
}


_PANIC_DEVICES = frozenset({"pvpanic", "pvpanic-pci", "pvpanic-mmio"})

MACHINE = ("machine", "M")
"""The names of the option that chooses the machine."""


class InitialState(msgspec.Struct, frozen=True, kw_only=True):
    """The memory and state that a guest starts with.

    Args:
        ram: Descriptor of the file with the guest's RAM, which QEMU inherits; None: QEMU allocates the RAM.
        shared: Whether the guest writes to that file; otherwise the pages that it writes to are copied.
        incoming: Whether QEMU waits for a state to load, instead of booting.
        connected: By the names of segments, descriptors of the connections to them, which QEMU inherits.
    """

    ram: int | None = None
    shared: bool = False
    incoming: bool = False
    connected: Mapping[str, int] = {}


BOOT = InitialState()


def check_extra(given: Options, *, qemu: str) -> None:
    """Check that the user's QEMU arguments do not conflict with vmdebug's own, and start a guest.

    Raises:
        UsageError: an argument is not allowed; the hint names the alternative.
    """
    for option in given.every:
        if option.name in _REFUSED:
            raise UsageError(
                f"the QEMU argument {option.word} cannot be used here", hint=_instead(option.name)
            )
        if option.name in MACHINE and "accel" in option.properties:
            raise UsageError(
                f"the QEMU argument {option.word} {option.argument} cannot choose the accelerator",
                hint=_instead("accel"),
            )
        if option.prints:
            asked = " ".join((option.word, *(() if option.argument is None else (option.argument,))))
            raise UsageError(
                f"the QEMU argument {asked} prints a list and starts no guest",
                hint=f"run QEMU itself: {qemu} {asked}",
            )
        if "=" in option.name:
            name, _, argument = option.word.partition("=")
            raise UsageError(
                f"QEMU does not take {option.word}: an option and its argument are two words",
                hint=f"write {name} {argument}",
            )


def own(
    spec: LaunchSpec,
    machine: OwnMachine,
    *,
    qemu: Path,
    arch: Arch,
    accel: RealAccel,
    rundir: RunDir,
    features: Features,
    disk_format: DiskFormat | None,
    initial: InitialState = BOOT,
    plugin: Path | None = None,
) -> tuple[str, ...]:
    """Return the whole command line of a guest with vmdebug's own QEMU options.

    Args:
        spec: What to start.
        machine: Its `machine`.
        qemu: The emulator.
        arch: The kernel's architecture.
        accel: The chosen accelerator.
        rundir: Where its sockets and logs are.
        features: This QEMU's features.
        disk_format: The format of `machine.disk`; None without a disk.
        initial: The memory and state that it starts with.
        plugin: The plugin that collects traces, or None.
    """
    given = qemuargs.parse(spec.qemu_args)
    return (
        str(qemu),
        *name(spec.name),
        *machine_type(arch, accel),
        *cpu(arch, accel),
        *size(arch, spec.memory or DEFAULT_MEMORY_MIB, spec.cpus or 1),
        *memory(
            arch, spec.memory or DEFAULT_MEMORY_MIB, initial, shared=any(map(directories.served, spec.shared))
        ),
        *boot(
            machine.unified or spec.kernel.image,
            machine.initrd,
            (
                *(addressing.for_init if machine.own_init else addressing.for_kernel)(spec.nics),
                *spec.parameters,
            ),
        ),
        *firmware(machine.firmware),
        *disks.own(machine, disk_format),
        *disks.root(spec.root),
        *disks.modules(machine.modules),
        *directories.shared(spec.shared, rundir),
        *network_cards.attached(spec.nics, initial.connected, rundir),
        *entropy(features),
        *generation(features, given, guid=recorded.VMGENID if spec.record is not None else "auto"),
        *harness(spec, arch=arch, rundir=rundir, features=features, given=given, plugin=plugin),
        *incoming(initial),
        *spec.qemu_args,
    )


def harness(
    spec: LaunchSpec,
    *,
    arch: Arch,
    rundir: RunDir,
    features: Features,
    given: Options,
    plugin: Path | None = None,
) -> tuple[str, ...]:
    """Return the options that every guest gets: console, monitors, gdbstub, debug devices, shell ports.

    Args:
        spec: What to start.
        arch: The kernel's architecture.
        rundir: Where its sockets and logs are.
        features: This QEMU's features.
        given: The options of the user and of a runner; devices in them are not added again.
        plugin: The plugin that collects traces, or None.
    """
    return (
        *no_user_interface(),
        *(recorded.lines(spec.record, rundir, arch, features) if spec.record else console(rundir)),
        *monitors(rundir),
        *gdbstub(rundir, spec.tcp),
        *debug_devices(features, given),
        *(
            (*recorded.clock(spec.record), *recorded.own_monitor(rundir))
            if spec.record
            else channels.devices(rundir, arch=arch, features=features, given=given)
        ),
        *ends(features),
        *traces(plugin, rundir),
        "-pidfile",
        str(rundir.pidfile),
        *(("-S",) if spec.halt else ()),
    )


def probe(*, qemu: Path, arch: Arch, accel: RealAccel, image: Path) -> tuple[str, ...]:
    """Return the command line that boots a kernel to its first message, with the console on stdout.

    With an early console, the message appears before the console's driver runs.
    """
    return (
        str(qemu),
        *machine_type(arch, accel),
        *cpu(arch, accel),
        "-m",
        str(PROBE_MEMORY_MIB),
        "-kernel",
        str(image),
        "-append",
        f"console={arch.console} {arch.early_console} panic=-1",
        *no_user_interface(),
        "-no-reboot",
        "-chardev",
        "stdio,id=serial0,signal=off",
        "-serial",
        "chardev:serial0",
    )


def name(vm: str) -> tuple[str, ...]:
    """Name the VM and its threads, for `ps` and `top`."""
    return ("-name", f"{vm},debug-threads=on")


def machine_type(arch: Arch, accel: RealAccel) -> tuple[str, ...]:
    """Choose the machine, without QEMU's default devices."""
    return ("-nodefaults", "-no-user-config", "-machine", f"{arch.machine},accel={accel}")


def cpu(arch: Arch, accel: RealAccel) -> tuple[str, ...]:
    """Choose the CPU: under KVM the host's, under TCG one with all features that QEMU emulates."""
    return ("-cpu", "host" if accel == "kvm" else arch.cpu)


def size(arch: Arch, memory_mib: int, cpus: int) -> tuple[str, ...]:
    """Set the size of the RAM and the number of CPUs."""
    sockets = f",sockets={cpus}" if arch.cpu_per_socket else ""
    return ("-m", str(memory_mib), "-smp", f"{cpus}{sockets}")


def memory(arch: Arch, memory_mib: int, initial: InitialState, *, shared: bool = False) -> tuple[str, ...]:
    """Put the RAM into a file, if clones share it; with `x-ignore-shared`, a saved state omits shared RAM.

    The memory block has the name that QEMU uses by default, so that a state can be loaded with either.

    Args:
        arch: The kernel's architecture.
        memory_mib: The RAM, in MiB.
        initial: The memory and state that it starts with.
        shared: Whether virtiofsd has to map the RAM.
    """
    if initial.ram is not None:
        share = "on" if initial.shared else "off"
        backend = f"memory-backend-file,mem-path=/proc/self/fd/{initial.ram},share={share}"
    elif shared:
        backend = "memory-backend-memfd,share=on"
    else:
        return ()
    return (
        "-object",
        f"{backend},id={arch.ram_id},size={memory_mib}M",
        "-machine",
        f"memory-backend={arch.ram_id}",
    )


def incoming(initial: InitialState) -> tuple[str, ...]:
    """Make QEMU wait for a state, which QMP's `migrate-incoming` loads."""
    return ("-S", "-incoming", "defer") if initial.incoming else ()


def boot(image: Path, initrd: Path | None, parameters: Sequence[str]) -> tuple[str, ...]:
    """Boot a kernel directly, without a boot loader.

    A firmware gets the image from QEMU and starts it; a unified kernel image, which is an EFI program, gets
    the parameters as its load options.
    """
    return (
        "-kernel",
        str(image),
        *(("-initrd", str(initrd)) if initrd else ()),
        *(("-append", " ".join(parameters)) if parameters else ()),
    )


def firmware(path: Path | None) -> tuple[str, ...]:
    """Have a firmware load the kernel, which it gets from QEMU.

    It is read-only flash, because some images have no place for variables; UEFI then keeps them in memory.
    """
    return ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={value(path)}") if path else ()


def entropy(features: Features) -> tuple[str, ...]:
    """Give the guest a source of random numbers, so that no program has to wait for them."""
    return ("-device", "virtio-rng-pci") if features.rng else ()


def generation(features: Features, given: Options, *, guid: str = "auto") -> tuple[str, ...]:
    """Notify a kernel with CONFIG_VMGENID when it is a clone, so that it reseeds its random numbers.

    See docs/specs/vmgenid.txt of QEMU: each QEMU has an id of its own, and notifies the guest after a load.
    """
    wanted = features.vmgenid and "vmgenid" not in given.devices()
    return ("-device", f"vmgenid,guid={guid}") if wanted else ()


def no_user_interface() -> tuple[str, ...]:
    """Open no window, and no monitor beside the serial port."""
    return ("-display", "none", "-monitor", "none")


def console(rundir: RunDir) -> tuple[str, ...]:
    """Put the first serial port on a socket, and log the guest's output.

    QEMU appends to the log, because a clone's log begins with its template's, and `snapshot.load` writes to
    it.
    """
    line = f"socket,id=console0,path={value(rundir.console)},server=on,wait=off"
    log = f"logfile={value(rundir.console_log)},logappend=on"
    return ("-chardev", f"{line},{log}", "-serial", "chardev:console0")


def monitors(rundir: RunDir) -> tuple[str, ...]:
    """Open two QMP sockets, one for people and one for vmdebug: each serves one client at a time.

    `-qmp` works in every QEMU; 11.1 warns that `-mon` is deprecated.
    """
    words: list[str] = []
    for number, path in enumerate((rundir.qmp, rundir.control)):
        words += [
            "-chardev",
            f"socket,id=qmp{number},path={value(path)},server=on,wait=off",
            "-qmp",
            f"chardev:qmp{number}",
        ]
    return tuple(words)


def gdbstub(rundir: RunDir, port: int | None) -> tuple[str, ...]:
    """Open the gdbstub, on a socket or on 127.0.0.1.

    Do not use `-s`: it listens on every interface, and any client that connects can run programs as the user.
    """
    where = f"path={value(rundir.gdb)}" if port is None else f"host=127.0.0.1,port={port}"
    return (
        "-chardev",
        f"socket,id={GDB_CHARDEV},{where},server=on,wait=off",
        "-gdb",
        f"chardev:{GDB_CHARDEV}",
    )


def debug_devices(features: Features, given: Options) -> tuple[str, ...]:
    """Add the devices with which a kernel reports a panic and describes its memory for dumps.

    Args:
        features: This QEMU's features.
        given: The options of the user and of a runner; QEMU allows one device of each kind.
    """
    there = given.devices()
    panic = () if there & _PANIC_DEVICES or not features.pvpanic else ("-device", features.pvpanic)
    dump = () if "vmcoreinfo" in there or not features.vmcoreinfo else ("-device", "vmcoreinfo")
    return (*panic, *dump)


def ends(features: Features) -> tuple[str, ...]:
    """End QEMU at a reboot, and pause the guest at a panic, so that it can be examined."""
    return ("-no-reboot", *(("-action", "panic=pause") if features.actions else ()))


def traces(plugin: Path | None, rundir: RunDir) -> tuple[str, ...]:
    """Load the plugin that collects traces; it traces nothing until a client connects to its socket."""
    return ("-plugin", f"{value(plugin)},socket={value(rundir.trace)}") if plugin is not None else ()


def _instead(name: str) -> str:
    """Return what to use instead of a QEMU option that is refused."""
    return _REFUSED[name].format(
        tcp=spelling.option("tcp", "PORT"),
        kvm=spelling.option("accel", "kvm"),
        tcg=spelling.option("accel", "tcg"),
    )
