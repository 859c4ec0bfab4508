"""The frozen values that describe a guest; the layers pass them to each other.

A source turns `GuestOptions` into a `LaunchSpec`; the VM layer starts a `LaunchSpec`; the debugger takes its
`Kernel`. `encode` and `decode` convert them to and from JSON without loss.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args

import msgspec

from vmdebug import spelling
from vmdebug.arch import Arch
from vmdebug.errors import UsageError
from vmdebug.spelling import option

Accel = Literal["auto", "kvm", "tcg"]

TraceReady = Literal["auto", "yes", "no"]

GuestKind = Literal["flake", "runner", "tree", "image", "builtin"]

DEFAULT_MEMORY_MIB = 512
"""Guest RAM, if neither the guest nor the user defines it."""

RootImage = Literal["auto", "always", "never"]

HOST = "host"
"""The value of the option `root` that stands for this machine's own root directory."""

AUTO_INIT = "auto"
"""`Root.init` for the init that the root file system has."""

NO_INIT = "none"
"""The value of the option `init` for a guest that runs only a shell."""

UEFI = "uefi"
"""The value of the option `firmware` that stands for the installed firmware."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


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


class GuestOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a guest, which `start` and a `[guest.NAME]` table accept.

    Args:
        source: GUEST, in any of its written forms.
        name: The VM's name; None: derive it from the guest.
        halt: Stop at the reset vector.
        kernel: Boot image or build tree to boot instead of the guest's own kernel.
        vmlinux: vmlinux to use when it is not found automatically.
        gdb_scripts: Directory with `vmlinux-gdb.py` beside `scripts/gdb`.
        debuginfod: Fetch the kernel's symbols from $DEBUGINFOD_URLS if no vmlinux is found.
        append: Kernel parameters to add.
        kaslr: Keep address randomisation; by default `nokaslr` is added.
        accel: The accelerator; `auto` uses KVM if it works here.
        memory: Guest RAM in MiB; None: the guest's default.
        cpus: Number of CPUs; None: the guest's default.
        disk: Disk image to use and keep; by default each run has a new one.
        initrd: The initramfs to boot instead of vmdebug's.
        root: The root file system: `host`, a directory, a disk image, or `debian:SUITE`; None: the initramfs.
        root_dev: The partition of the image with the root file system; 0: the whole disk; None: find it.
        root_image: Whether to pack a directory as an image first; `auto` does for a suite and in pytest.
        init: The program that the root file system starts as init, or `none`; None: find it.
        keep: Keep what the guest writes to the root image; by default it is discarded with the VM.
        firmware: A firmware to boot through: a file, or `uefi` for the installed one; None: QEMU loads the
            kernel.
        tcp: Port on 127.0.0.1 for GDB; 0: any free port; None: a socket in the run directory.
        trace_ready: Whether QEMU loads the plugin that collects traces; `auto` loads it where it works.
        qemu_args: More arguments for QEMU.
        nix_args: More arguments for nix: `--override-input`, `--impure`.
        force: Continue even if symbols and kernel are from different builds.
        table: NAME of the `[guest.NAME]` that it was read from; set by `vmdebug.config`. If a VM already has
            that name, a number is added, while a `name` that is taken is an error.
        from_table: The fields that come from the table; messages spell them as in vmdebug.toml.
    """

    source: str = "builtin"
    name: str | None = None
    halt: bool = False
    kernel: str | None = None
    vmlinux: str | None = None
    gdb_scripts: str | None = None
    debuginfod: bool = False
    append: str = ""
    kaslr: bool = False
    accel: Accel = "auto"
    memory: Positive | None = None
    cpus: Positive | None = None
    disk: str | None = None
    initrd: str | None = None
    root: str | None = None
    root_dev: Annotated[int, msgspec.Meta(ge=0)] | None = None
    root_image: RootImage = "auto"
    init: str | None = None
    keep: bool = False
    firmware: str | None = None
    tcp: Port | None = None
    trace_ready: TraceReady = "auto"
    qemu_args: tuple[str, ...] = ()
    nix_args: tuple[str, ...] = ()
    force: bool = False
    table: str | None = None
    from_table: tuple[str, ...] = ()

    def speller(self) -> spelling.Spelling:
        """Return how messages spell these options: those from the table as in vmdebug.toml."""

        def spell(name: str, value: spelling.Value = None) -> str:
            if name in self.from_table and value == getattr(self, name):
                return f"[guest.{self.table}] {spelling.toml(name, value)}"
            return usual(name, value)

        usual = spelling.current()
        return spell


CHOICES: dict[str, tuple[str, ...]] = {"accel": get_args(Accel), "root_image": get_args(RootImage)}
"""The words of each option that takes one of several."""

AnyPath = str | os.PathLike[str]


class StartOptions(TypedDict, total=False):
    """The keyword arguments of `vmdebug.start`; `GuestOptions` explains each.

    An option that is not given has the guest's value in vmdebug.toml, or else the default.
    """

    name: str | None
    halt: bool
    kernel: AnyPath | None
    vmlinux: AnyPath | None
    gdb_scripts: AnyPath | None
    debuginfod: bool
    append: str
    kaslr: bool
    accel: Accel
    memory: int | str | None
    cpus: int | None
    disk: AnyPath | None
    initrd: AnyPath | None
    root: AnyPath | None
    root_dev: int | None
    root_image: RootImage
    init: str | None
    keep: bool
    firmware: AnyPath | None
    tcp: int | None
    trace_ready: TraceReady
    qemu_args: Sequence[str]
    nix_args: Sequence[str]
    force: bool


def changed(base: GuestOptions, said: Mapping[str, Any]) -> GuestOptions:
    """Return options with those of the caller, which override those of vmdebug.toml.

    Args:
        base: The options in vmdebug.toml, or the defaults.
        said: The `StartOptions` of the caller.

    Raises:
        UsageError: there is no such option, or its value is of a wrong type or out of range.
    """
    for name in said:
        if name not in StartOptions.__annotations__:
            near = spelling.nearest(name, StartOptions.__annotations__)
            known = ", ".join(map(option, StartOptions.__annotations__))
            hint = f"did you mean {option(near)}?" if near else f"the options are: {known}"
            raise UsageError(f"there is no option {option(name)}", hint=hint)
    plain = {name: _plain(name, value) for name, value in said.items()}
    from_table = tuple(name for name in base.from_table if name not in said)
    return checked(msgspec.structs.replace(base, **plain, from_table=from_table))


def checked(options: GuestOptions) -> GuestOptions:
    """Check the types and limits of the values, and return the options.

    Raises:
        UsageError: a value is wrong.
    """
    try:
        return msgspec.convert(msgspec.structs.asdict(options), GuestOptions)
    except msgspec.ValidationError as error:
        what, _, place = str(error).replace("array", "list").replace("null", "None").partition(" - at `$.")
        name = place.rstrip("`")
        hint = f"it is one of {', '.join(CHOICES[name])}" if name in CHOICES else spelling.reference()
        raise UsageError(f"{option(name)}: {what}", hint=hint) from error


def _plain(name: str, value: Any) -> Any:
    """Convert a value of `StartOptions` to the type in `GuestOptions`."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if name == "memory" and isinstance(value, str):
        try:
            return memory_mib(value)
        except UsageError as error:
            raise UsageError(f"{option(name)}: {error.message}", hint=error.hint) from error
    if name in ("qemu_args", "nix_args") and isinstance(value, list):
        return tuple(value)
    return value


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
    source: Path | None = None


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """The root file system of a guest; made by `vmdebug.roots.resolve`.

    Args:
        words: The option as the user wrote it.
        location: A directory that the guest gets over 9p, or the image of a disk.
        file_system: Its type, as mount(8) takes it: "9p", "erofs", "ext4".
        format: The format of the image: "raw", "qcow2"; "" for a directory.
        partition: The number of the partition; 0: the whole disk.
        keep: Whether the guest writes to the image. Otherwise its writes go to a layer in its memory.
        init: The program to start as init; `auto`: find it; `none`: only a shell.
        systemd: Whether init is known to be systemd.
        note: What was chosen and why, for the user.
    """

    words: str
    location: Path
    file_system: str
    format: str = ""
    partition: int = 0
    keep: bool = False
    init: str = AUTO_INIT
    systemd: bool = False
    note: str = ""


class OwnMachine(msgspec.Struct, frozen=True, kw_only=True, tag="own"):
    """A guest for which vmdebug builds QEMU's command line.

    Args:
        initrd: Initial RAM file system, or None.
        disk: Disk image for the first virtio-blk device, or None.
        throwaway: Whether to discard the guest's writes with the VM, so that several VMs can share the disk.
        firmware: The firmware that loads the kernel; None: QEMU does.
        unified: The unified kernel image that the firmware starts in place of the kernel and `initrd`; None:
            it starts those.
    """

    initrd: Path | None = None
    disk: Path | None = None
    throwaway: bool = False
    firmware: Path | None = None
    unified: Path | None = None


class RunnerMachine(msgspec.Struct, frozen=True, kw_only=True, tag="runner"):
    """A guest that a NixOS VM runner script starts.

    Args:
        script: The `run-NAME-vm` script.
        system_name: NAME, the guest's host name.
        kernel_override: Whether `Kernel.image` replaces the runner's kernel.
        disk: qcow2 image to use and keep; None: a new one for each run.
    """

    script: Path
    system_name: str
    kernel_override: bool = False
    disk: Path | None = None


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
        memory: Guest RAM in MiB; None: the runner's default.
        cpus: Number of CPUs; None: the runner's default.
        tcp: Port on 127.0.0.1 for GDB; 0: any free port; None: a socket.
        trace_ready: See `GuestOptions.trace_ready`.
        qemu_args: More arguments for QEMU, at the end.
        notes: Notes for the user about automatic choices.
        asked: The options that it was made from, with absolute paths, for `restart`.
    """

    name: str
    guest: str
    machine: OwnMachine | RunnerMachine
    kernel: Kernel
    parameters: tuple[str, ...] = ()
    root: Root | None = None
    halt: bool = False
    accel: Accel = "auto"
    memory: int | None = None
    cpus: int | None = None
    tcp: int | None = None
    trace_ready: TraceReady = "auto"
    qemu_args: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    asked: GuestOptions | None = None


DEBUGGER_PARAMETERS = ("nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1")
"""Parameters that prevent a guest from reporting a stop in the debugger as a hang; `Arch.parameters` has
more.

See Documentation/admin-guide/kernel-parameters.txt: without them the lockup detectors and RCU's stall
detector report the time for which the guest was stopped.
"""


IGNORE_LOGLEVEL = "ignore_loglevel"
"""The parameter that makes the console show all kernel messages, even after `dmesg -n 1`.

Otherwise a warning of the kernel might not appear there. See ignore_loglevel in kernel-parameters.txt.
"""

LOGLEVEL_PARAMETERS = ("quiet", "loglevel", IGNORE_LOGLEVEL)
"""Parameters with which the user chooses the console's log level; then `IGNORE_LOGLEVEL` is not added."""

BAUD = 115200
"""Speed of a serial line, in bit/s: of the guest's console, and of kgdb, as in `kgdboc=ttyS0,115200`.

QEMU's 16550 delays the end of its input by the time of four characters (hw/char/serial.c): 4 ms for each line
at the kernel's default of 9600.
"""


def parameters(row: Arch, *, kaslr: bool, append: str) -> tuple[str, ...]:
    """Return the kernel parameters of a guest: vmdebug's, then the user's, which override them.

    Args:
        row: The guest's architecture.
        kaslr: Whether to keep address randomisation.
        append: The user's parameters, in the form of a kernel command line.
    """
    slide = () if kaslr else ("nokaslr",)
    console = f"console={row.console},{BAUD}"
    said = append.split()
    loud = () if any(word.partition("=")[0] in LOGLEVEL_PARAMETERS for word in said) else (IGNORE_LOGLEVEL,)
    return (console, *slide, *DEBUGGER_PARAMETERS, *loud, *row.parameters, *said)


_MEMORY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([MGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_IN_MIB = {"": 1, "M": 1, "G": 1024, "T": 1024 * 1024}


def memory_mib(text: str) -> int:
    """Return an amount of guest RAM in MiB.

    Args:
        text: A number of MiB, or a number with M, G or T: "512", "2G", "1.5GiB".

    Raises:
        UsageError: it is not a whole number of MiB, at least 1.
    """
    found = _MEMORY.fullmatch(text.strip())
    mib = float(found[1]) * _IN_MIB[found[2].upper()] if found else 0
    if mib < 1 or mib != int(mib):
        raise UsageError(f"{text!r} is not an amount of memory", hint="give MiB, or a unit: 512, 512M, 2G")
    return int(mib)


def console_notes(row: Arch, words: Sequence[str]) -> tuple[str, ...]:
    """Return a note if kernel parameters put the console where vmdebug does not listen.

    Each `console=` gets the kernel's messages; the last one is also /dev/console, which programs write to.
    See Documentation/admin-guide/serial-console.rst.

    Args:
        row: The guest's architecture.
        words: All parameters of the guest.
    """
    consoles = [word.partition("=")[2].partition(",")[0] for word in words if word.startswith("console=")]
    if not consoles or consoles[-1] == row.console:
        return ()
    who = "the guest's programs write" if row.console in consoles else "the kernel and its programs write"
    note = (
        f"console={consoles[-1]} is the last console=: {who} to {consoles[-1]}, and vmdebug reads"
        f" {row.console}; leave it out, or add console={row.console} after it"
    )
    return (note,)


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
