"""The options of a guest: what a caller, a `[guest.NAME]` table and the command line can say.

A source turns them into a `vmdebug.guest.LaunchSpec`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, get_args

import msgspec

from vmdebug import spelling
from vmdebug.errors import UsageError
from vmdebug.spelling import option

Accel = Literal["auto", "kvm", "tcg"]

TraceReady = Literal["auto", "yes", "no"]

RootImage = Literal["auto", "always", "never"]

ShareMode = Literal["ro", "rw", "overlay"]
"""Whether a guest may write to a directory of this machine; `overlay`: to a layer in its memory."""

HOST = "host"
"""The value of the option `root` that stands for this machine's own root directory."""

CONTAINER_FILES = ("oci", "oci-archive", "docker-archive")
"""What the option `root` begins with for a container image in a path, as in `oci:DIR:TAG`.

See containers-transports(5).
"""

CONTAINER_STORES = ("docker", "docker-daemon", "containers-storage", "ostree", "sif")
"""What the option `root` begins with for a container image that skopeo fetches: `docker://NAME`."""

NO_INIT = "none"
"""The value of the option `init` for a guest that runs only a shell."""

NO_MODULES = "none"
"""The value of the option `modules` for a guest without modules."""

UEFI = "uefi"
"""The value of the option `firmware` that stands for the installed firmware."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


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
        modules: Directory with the kernel's modules for the guest's /lib/modules: lib/modules/RELEASE, or the
            root of an unpacked package; `none`: the guest gets none; None: find them.
        module: Module files to add to the guest's modules.
        load_modules: Whether the guest loads these when it has booted.
        root: The root file system: `host`, a directory, a disk image, `debian:SUITE`, or a container image;
            None: the initramfs.
        root_dev: The partition of the image with the root file system; 0: the whole disk; None: find it.
        root_image: Whether to pack a root as an image first; `auto` does for a suite and a container image,
            and in pytest for a directory.
        init: The program that the root file system starts as init, or `none`; None: find it.
        login: Leave the console to the root's own login; by default it has a root shell of vmdebug.
        keep: Keep what the guest writes to the root image; by default it is discarded with the VM.
        share: Directories of this machine that the guest gets: `DIR[:GUESTDIR][:ro|rw|overlay]`.
        net: The networks: `user`, `bridge=NAME`, `segment=NAME`, with `,ip=` and `,mac=` or not; or `none`.
        forward: Ports of the host that QEMU's user network forwards: [[ADDRESS:]HOST:]GUEST[/udp].
        firmware: A firmware to boot through: a file, or `uefi` for the installed one; None: QEMU loads the
            kernel.
        tcp: Port on 127.0.0.1 for GDB; 0: any free port; None: a socket in the run directory.
        trace_ready: Whether QEMU loads the plugin that collects traces; `auto` loads it where it works.
        record: Record the guest: the path of the recording; "" or True: a new one among vmdebug's; None: it
            is not recorded.
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
    modules: str | None = None
    module: tuple[str, ...] = ()
    load_modules: bool = True
    root: str | None = None
    root_dev: Annotated[int, msgspec.Meta(ge=0)] | None = None
    root_image: RootImage = "auto"
    init: str | None = None
    login: bool = False
    keep: bool = False
    share: tuple[str, ...] = ()
    net: tuple[str, ...] = ()
    forward: tuple[str, ...] = ()
    firmware: str | None = None
    tcp: Port | None = None
    trace_ready: TraceReady = "auto"
    record: str | None = None
    qemu_args: tuple[str, ...] = ()
    nix_args: tuple[str, ...] = ()
    force: bool = False
    table: str | None = None
    from_table: tuple[str, ...] = ()

    def speller(self) -> spelling.Spelling:
        """Return how messages spell these options: those from the table as in vmdebug.toml."""

        def spell(name: str, value: spelling.Value = None) -> str:
            given = getattr(self, name)
            if name in self.from_table and (value == given or (name in SEVERAL and value in given)):
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
    modules: AnyPath | None
    module: AnyPath | Sequence[AnyPath]
    load_modules: bool
    root: AnyPath | None
    root_dev: int | None
    root_image: RootImage
    init: str | None
    login: bool
    keep: bool
    share: AnyPath | Sequence[AnyPath]
    net: str | Sequence[str] | None
    forward: int | str | Sequence[int | str] | None
    firmware: AnyPath | None
    tcp: int | None
    trace_ready: TraceReady
    record: AnyPath | bool | None
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
    if name in SEVERAL:
        return several(name, value)
    if isinstance(value, os.PathLike):
        return _plain(name, os.fspath(value))
    if name == "memory" and isinstance(value, str):
        try:
            return memory_mib(value)
        except UsageError as error:
            raise UsageError(f"{option(name)}: {error.message}", hint=error.hint) from error
    if name == "record" and isinstance(value, bool):
        return "" if value else None
    if name in ("qemu_args", "nix_args") and isinstance(value, (list, tuple)):
        return tuple(map(os.fspath, value))
    return value


def split_share(words: str) -> tuple[str, str, str]:
    """Return the directory, the place in the guest and the mode of the option `share`; "" if not given."""
    head, colon, mode = words.rpartition(":")
    if not colon or mode not in get_args(ShareMode):
        head, mode = words, ""
    where, colon, place = head.rpartition(":")
    return (where, place, mode) if colon and place.startswith("/") else (head, "", mode)


SEVERAL = ("module", "share", "net", "forward")
"""The options that take one word or several."""


def several(name: str, value: Any) -> Any:
    """Return the words of an option that takes one or several; a port may be a number, a file a path."""
    words = () if value is None else value if isinstance(value, list | tuple) else (value,)
    return tuple(_word(name, each) for each in words)


def _word(name: str, value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value) if name == "forward" and type(value) is int else value


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
