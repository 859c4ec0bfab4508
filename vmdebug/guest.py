"""The frozen values that describe a guest; the layers pass them to each other.

A source turns `GuestOptions` into a `LaunchSpec`; the VM layer starts a `LaunchSpec`; the debugger takes its
`Kernel`. `encode` and `decode` convert them to and from JSON without loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import msgspec

from vmdebug.guest_options import Accel, GuestOptions, ShareMode, TraceReady
from vmdebug.network import Nic

GuestKind = Literal["flake", "runner", "tree", "image", "builtin"]

DEFAULT_MEMORY_MIB = 512
"""Guest RAM, if neither the guest nor the user defines it."""

AUTO_INIT = "auto"
"""`Root.init` for the init that the root file system has."""


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed GUEST; made by `vmdebug.sources.parse`.

    Args:
        kind: The kind of source.
        words: GUEST as the user wrote it.
        location: Absolute path of the script, tree or image; the reference of a flake, with an absolute path;
            "" for `builtin`.
        attribute: The attribute after `#` of a flake; otherwise "".
    """

    kind: GuestKind
    words: str
    location: str = ""
    attribute: str = ""


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel, with everything needed to debug it.

    Args:
        image: The boot image.
        origin: Its source, for messages: "the tree /src/linux".
        arch: Row of `vmdebug.arch`.
        build_id: GNU build-id in hex; "" if the image has none.
        release: Its `uname -r`; "" if unknown.
        vmlinux: The ELF file with symbols, or None.
        gdb_scripts: Directory with a loadable `vmlinux-gdb.py` beside `scripts/gdb`, or None.
        modules: Directory that has its `.ko` files, at any depth, or None.
        module_symbols: Module files, and directories with module files, whose symbols are used rather than
            those of the files in `modules`: those of a debug package.
        source: Directory that relative paths in DWARF start from, or None.
    """

    image: Path
    origin: str
    arch: str
    build_id: str = ""
    release: str = ""
    vmlinux: Path | None = None
    gdb_scripts: Path | None = None
    modules: Path | None = None
    module_symbols: tuple[Path, ...] = ()
    source: Path | None = None

    def module_files(self) -> tuple[Path, ...]:
        """Return where to look for the files of its modules with symbols, the best first."""
        return (*self.module_symbols, *((self.modules,) if self.modules is not None else ()))


Transport = Literal["9p", "virtiofs"]
"""How a guest gets a directory of this machine, as mount(8) takes it."""

ROOT_TAG = "vmdebug-root"
"""Mount tag or serial number of the root file system; sources/switch.sh looks for it."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of this machine that a guest gets; made by `vmdebug.roots.shares`.

    Args:
        directory: The directory.
        mount_point: Where the guest has it.
        mode: Whether the guest may write to it.
        transport: How the guest gets it.
        tag: The name by which the guest mounts it.
    """

    directory: Path
    mount_point: str
    mode: ShareMode
    transport: Transport
    tag: str

    @property
    def read_only(self) -> bool:
        """Whether the guest cannot change the directory."""
        return self.mode != "rw"


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """The root file system of a guest; made by `vmdebug.roots.resolve`.

    Args:
        words: The option as the user wrote it.
        location: A directory that the guest gets, or the image of a disk.
        file_system: Its type, as mount(8) takes it: "9p" and "virtiofs" for a directory, "erofs", "ext4".
        format: The format of the image: "raw", "qcow2"; "" for a directory.
        partition: The number of the partition; 0: the whole disk.
        keep: Whether the guest writes to the image. Otherwise its writes go to a layer in its memory.
        init: The program to start as init; `auto`: find it; `none`: only a shell.
        login: Whether the root's own programs ask for a login on the console; otherwise it has a root shell.
        systemd: Whether init is known to be systemd.
        environment: Variables of the guest's commands, as NAME=VALUE.
        directory: The working directory of the guest's commands; "" for the home directory.
        note: What was chosen and why, for the user.
    """

    words: str
    location: Path
    file_system: str
    format: str = ""
    partition: int = 0
    keep: bool = False
    init: str = AUTO_INIT
    login: bool = False
    systemd: bool = False
    environment: tuple[str, ...] = ()
    directory: str = ""
    note: str = ""

    @property
    def share(self) -> Share | None:
        """The root as a shared directory; None if it is an image."""
        if self.file_system not in get_args(Transport):
            return None
        transport = cast("Transport", self.file_system)
        return Share(
            directory=self.location, mount_point="/", mode="overlay", transport=transport, tag=ROOT_TAG
        )


class OwnMachine(msgspec.Struct, frozen=True, kw_only=True, tag="own"):
    """A guest for which vmdebug builds QEMU's command line.

    Args:
        initrd: Initial RAM file system, or None.
        disk: Disk image for the first virtio-blk device, or None.
        throwaway: Whether to discard the guest's writes with the VM, so that several VMs can share the disk.
        firmware: The firmware that loads the kernel; None: QEMU does.
        unified: The unified kernel image that the firmware starts in place of the kernel and `initrd`; None:
            it starts those.
        modules: The read-only image of the guest's modules, or None.
        own_init: Whether its init is that of vmdebug's initramfs, which configures the network cards.
    """

    initrd: Path | None = None
    modules: Path | None = None
    disk: Path | None = None
    throwaway: bool = False
    firmware: Path | None = None
    unified: Path | None = None
    own_init: bool = True


class RunnerMachine(msgspec.Struct, frozen=True, kw_only=True, tag="runner"):
    """A guest that a NixOS VM runner script starts.

    Args:
        script: The `run-NAME-vm` script.
        system_name: NAME, the guest's host name.
        kernel_override: Whether `Kernel.image` replaces the runner's kernel.
        disk: qcow2 image to use and keep; None: a new one for each run.
        initrd: The initramfs to boot instead of the runner's, or None.
        modules: The read-only image of the guest's modules, or None.
    """

    script: Path
    system_name: str
    kernel_override: bool = False
    disk: Path | None = None
    initrd: Path | None = None
    modules: Path | None = None


class ReplayMachine(msgspec.Struct, frozen=True, kw_only=True, tag="replay"):
    """A guest that a recording plays again; `vmdebug.replaying` makes it.

    Args:
        recording: The directory of the recording.
        argv: QEMU's command line that recorded it.
        run: The run directory in `argv`.
        qemu: The emulator.
        log: QEMU's log.
        moved: By their names in `argv`, where the files of the guest are now.
    """

    recording: Path
    argv: tuple[str, ...]
    run: Path
    qemu: Path
    log: Path
    moved: dict[str, str] = {}


class LaunchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to start a VM. A source makes it, and the VM layer uses it.

    Args:
        name: The name of the VM and of its run directory.
        guest: GUEST as the user wrote it.
        machine: How QEMU's command line is made.
        kernel: The kernel that boots.
        parameters: Kernel parameters: vmdebug's, then the user's. A runner adds its own before them.
        halt: Stop at the reset vector.
        accel: The accelerator that the user wants.
        root: The root file system; None: that of the initramfs, or of the runner.
        shares: The directories of this machine that the guest gets besides its root.
        nics: Its network cards; those of a runner only have the ports that are forwarded.
        memory: Guest RAM in MiB; None: the runner's default.
        cpus: Number of CPUs; None: the runner's default.
        tcp: Port on 127.0.0.1 for GDB; 0: any free port; None: a socket.
        trace_ready: See `GuestOptions.trace_ready`.
        record: The directory of the recording that is made of it; None: none is.
        qemu_args: More arguments for QEMU, at the end.
        notes: Notes for the user about automatic choices.
        asked: The options that it was made from, with absolute paths, for `restart`.
    """

    name: str
    guest: str
    machine: OwnMachine | RunnerMachine | ReplayMachine
    kernel: Kernel
    parameters: tuple[str, ...] = ()
    root: Root | None = None
    shares: tuple[Share, ...] = ()
    nics: tuple[Nic, ...] = ()
    halt: bool = False
    accel: Accel = "auto"
    memory: int | None = None
    cpus: int | None = None
    tcp: int | None = None
    trace_ready: TraceReady = "auto"
    record: Path | None = None
    qemu_args: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    asked: GuestOptions | None = None

    @property
    def shared(self) -> tuple[Share, ...]:
        """All directories of this machine that the guest gets; its root is the first."""
        root = self.root.share if self.root is not None else None
        return (*((root,) if root is not None else ()), *self.shares)


T = TypeVar("T")


def encode(value: object) -> bytes:
    """Return a value of this module, or a value that contains such values, as JSON."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=_encode_path), indent=2)


def decode(data: bytes, kind: type[T]) -> T:
    """Return the value that `encode` has written.

    Raises:
        msgspec.ValidationError: the JSON is not a `kind`.
    """
    return msgspec.json.decode(data, type=kind, dec_hook=_decode_path)


def _encode_path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)
