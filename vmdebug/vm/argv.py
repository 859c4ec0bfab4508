"""Builds QEMU's command line, with one function for each family of devices; pure.

See qemu(1), or https://www.qemu.org/docs/master/system/invocation.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from vmdebug import network, spelling
from vmdebug.arch import Arch
from vmdebug.errors import UsageError
from vmdebug.guest import DEFAULT_MEMORY_MIB, ROOT_TAG, LaunchSpec, OwnMachine, Root, Share
from vmdebug.network import Nic
from vmdebug.vm import channels, qemuargs
from vmdebug.vm.features import Features
from vmdebug.vm.qemuargs import Options, value
from vmdebug.vm.rundir import RunDir

RealAccel = Literal["kvm", "tcg"]
DiskFormat = Literal["qcow2", "raw"]

GDB_CHARDEV = "gdb0"
"""Id of the gdbstub's chardev; `query-chardev` returns its port."""

MODULES = "vmdebug-modules"
"""Serial number of the disk with the modules; sources/modules.sh looks for it."""

NETDEV = "net"
"""Prefix of the ids of network backends; the number of the card follows."""

PROBE_MEMORY_MIB = 512

_QCOW2_MAGIC = b"QFI\xfb"

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
        *memory(arch, spec.memory or DEFAULT_MEMORY_MIB, initial, shared=any(map(served, spec.shared))),
        *boot(
            machine.unified or spec.kernel.image,
            machine.initrd,
            (
                *(network.for_init if machine.own_init else network.for_kernel)(spec.nics),
                *spec.parameters,
            ),
        ),
        *firmware(machine.firmware),
        *_disk(machine, disk_format),
        *root_device(spec.root),
        *modules_device(machine.modules),
        *directories(spec.shared, rundir),
        *network_cards(spec.nics, initial.connected, rundir),
        *entropy(features),
        *generation(features, given),
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
        *console(rundir),
        *monitors(rundir),
        *gdbstub(rundir, spec.tcp),
        *debug_devices(features, given),
        *channels.devices(rundir, arch=arch, features=features, given=given),
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


def root_device(root: Root | None) -> tuple[str, ...]:
    """Attach a root file system under the name by which vmdebug's init finds it.

    The image is read-only for QEMU, unless the user wants to keep the guest's writes. A directory is one of
    `LaunchSpec.shared`.
    """
    if root is None or root.share is not None:
        return ()
    only = "" if root.keep else ",read-only=on"
    return (
        "-blockdev",
        f"driver=file,node-name=rootfile0,filename={value(root.location)}{only}",
        "-blockdev",
        f"driver={root.format},node-name=root0,file=rootfile0{only}",
        "-device",
        f"virtio-blk-pci,drive=root0,serial={ROOT_TAG}",
    )


def modules_device(image: Path | None) -> tuple[str, ...]:
    """Attach the read-only image of the guest's modules under the name by which vmdebug's init finds it."""
    if image is None:
        return ()
    return (
        "-blockdev",
        f"driver=file,node-name=modulesfile0,filename={value(image)},read-only=on",
        "-blockdev",
        "driver=raw,node-name=modules0,file=modulesfile0,read-only=on",
        "-device",
        f"virtio-blk-pci,drive=modules0,serial={MODULES}",
    )


def served(share: Share) -> bool:
    """Whether virtiofsd serves a directory; otherwise QEMU itself does."""
    return share.transport == "virtiofs"


def directories(shares: Sequence[Share], rundir: RunDir) -> tuple[str, ...]:
    """Give the guest directories of this machine, over virtiofs or 9p."""
    words: list[str] = []
    for number, share in enumerate(shares):
        if served(share):
            words += ["-chardev", f"socket,id=fs{number},path={value(rundir.file_server(number))}"]
            words += ["-device", f"vhost-user-fs-pci,chardev=fs{number},tag={share.tag}"]
        else:
            words += p9(share, f"fs{number}")
    return tuple(words)


def p9(share: Share, name: str) -> tuple[str, ...]:
    """Give the guest a directory over 9p."""
    only = ",readonly=on" if share.read_only else ""
    local = f"local,id={name},path={value(share.directory)},security_model=none,multidevs=remap{only}"
    return ("-fsdev", local, "-device", f"virtio-9p-pci,fsdev={name},mount_tag={share.tag}")


def network_cards(nics: Sequence[Nic], connected: Mapping[str, int], rundir: RunDir) -> tuple[str, ...]:
    """Attach the network cards, without their ROM, which would boot over the network.

    Args:
        nics: The cards.
        connected: By the names of segments, descriptors of the connections to them. A plan has none, and
            names the sockets.
        rundir: Where the VM's sockets and logs are.
    """
    words: list[str] = []
    for number, nic in enumerate(nics):
        device = f"virtio-net-pci,id=nic{number},netdev={NETDEV}{number},mac={nic.mac},romfile="
        words += ["-netdev", _backend(nic, f"{NETDEV}{number}", connected, rundir), "-device", device]
    return tuple(words)


def _backend(nic: Nic, name: str, connected: Mapping[str, int], rundir: RunDir) -> str:
    match nic.kind:
        case "user":
            rules = "".join(f",hostfwd={each.rule}" for each in nic.forwards)
            return f"user,id={name}{rules}"
        case "bridge":
            return f"bridge,id={name},br={value(nic.name)}"
        case "segment":
            if nic.name in connected:
                return f"stream,id={name},server=off,addr.type=fd,addr.str={connected[nic.name]}"
            return (
                f"stream,id={name},server=off,addr.type=unix,addr.path={value(rundir.segment(nic.segment))}"
            )
        case None:
            # A hub without other ports.
            return f"hubport,id={name},hubid={name.removeprefix(NETDEV)}"


def _disk(machine: OwnMachine, disk_format: DiskFormat | None) -> tuple[str, ...]:
    if machine.disk is None or disk_format is None:
        return ()
    return (throwaway if machine.throwaway else disk)(machine.disk, disk_format)


def disk(path: Path, disk_format: DiskFormat) -> tuple[str, ...]:
    """Attach a disk image as the first virtio block device; the guest writes to it."""
    return (
        "-blockdev",
        f"driver=file,node-name=file0,filename={value(path)}",
        "-blockdev",
        f"driver={disk_format},node-name=disk0,file=file0",
        "-device",
        "virtio-blk-pci,drive=disk0",
    )


def throwaway(path: Path, disk_format: DiskFormat) -> tuple[str, ...]:
    """Attach a disk image read-only: the guest's writes go into an unnamed file in $TMPDIR.

    See `snapshot` of `-drive` in QEMU's manual; `-blockdev` has no such option.
    """
    return (
        "-drive",
        f"if=none,id=disk0,format={disk_format},snapshot=on,file={value(path)}",
        "-device",
        "virtio-blk-pci,drive=disk0",
    )


def disk_format(head: bytes) -> DiskFormat:
    """Return a disk image's format, according to its first bytes.

    Do not let QEMU guess it: a guest could then write a qcow2 header to a raw disk.
    """
    return "qcow2" if head.startswith(_QCOW2_MAGIC) else "raw"


def entropy(features: Features) -> tuple[str, ...]:
    """Give the guest a source of random numbers, so that no program has to wait for them."""
    return ("-device", "virtio-rng-pci") if features.rng else ()


def generation(features: Features, given: Options) -> tuple[str, ...]:
    """Notify a kernel with CONFIG_VMGENID when it is a clone, so that it reseeds its random numbers.

    See docs/specs/vmgenid.txt of QEMU: each QEMU has an id of its own, and notifies the guest after a load.
    """
    wanted = features.vmgenid and "vmgenid" not in given.devices()
    return ("-device", "vmgenid,guid=auto") if wanted else ()


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
