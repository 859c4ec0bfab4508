"""The options that describe a guest, and how they become `GuestOptions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmdebug.cli import verb

if TYPE_CHECKING:
    from vmdebug.guest_options import GuestOptions

OVERRIDE = "--override-input"

RECORDING = ".vmdrec"
"""The ending of a recording; see `vmdebug.recording.files.ENDING`."""


def rewritten(words: list[str]) -> list[str]:
    """Return the words in a form that typer can parse.

    typer has no option with an optional value, and no repeatable one with two values: `--tcp` without a
    port becomes `--tcp=0`, `--record` without a file `--record=`, and `--override-input NAME URL` gets one
    value. The word after `--record` is its file if it has the ending of one; otherwise it is GUEST.
    """
    done: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--tcp" and not (rest and rest[0].isdigit()):
            done.append("--tcp=0")
        elif word == "--record" and not (rest and rest[0].endswith(RECORDING)):
            done.append("--record=")
        elif word == OVERRIDE and len(rest) > 1:
            done += [word, f"{rest.pop(0)} {rest.pop(0)}"]
        else:
            done.append(word)
    return done


def given(guest: str | None, **options: Any) -> GuestOptions:
    """Return the options of a guest: those of vmdebug.toml, overridden by those of the command line.

    Args:
        guest: GUEST, or None for the default one.
        options: Fields of `StartOptions`; None if the user did not give it.

    Raises:
        UsageError: GUEST, an option or vmdebug.toml is invalid.
    """
    from vmdebug import config
    from vmdebug.guest_options import changed

    return changed(config.lookup(guest), {key: value for key, value in options.items() if value is not None})


def nix_words(
    override_input: list[str] | None, impure: bool, nix_arg: list[str] | None
) -> tuple[str, ...] | None:
    """Return the arguments for nix; None if the user gave none."""
    words = [part for pair in override_input or () for part in (OVERRIDE, *pair.split(maxsplit=1))]
    words += ["--impure"] if impure else []
    words += nix_arg or ()
    return tuple(words) or None


Guest = Annotated[
    str | None,
    typer.Argument(
        metavar="GUEST",
        help="FLAKEREF#NAME, a kernel build tree, a run-*-vm script, a bzImage, `builtin`, or a [guest.NAME]"
        " of vmdebug.toml. Default: vmdebug.toml's default, else `builtin`.",
        autocompletion=verb.complete_guest,
    ),
]
Halt = Annotated[
    bool | None,
    typer.Option("--halt/--no-halt", "-S", help="Stop before the first instruction, at the reset vector."),
]
Name = Annotated[str | None, typer.Option(metavar="N", help="Name of the VM; by default made from GUEST.")]
Kernel = Annotated[
    str | None, typer.Option(metavar="IMAGE|TREE", help="Boot this kernel instead of the guest's own.")
]
Vmlinux = Annotated[
    str | None, typer.Option(metavar="F", help="vmlinux to use when it is not found automatically.")
]
GdbScripts = Annotated[
    str | None, typer.Option(metavar="DIR", help="Directory with vmlinux-gdb.py and scripts/gdb.")
]
Debuginfod = Annotated[
    bool | None,
    typer.Option(
        "--debuginfod/--no-debuginfod", help="Fetch symbols from $DEBUGINFOD_URLS if no vmlinux is found."
    ),
]
Append = Annotated[str | None, typer.Option(metavar="S", help="Kernel parameters to add.")]
Kaslr = Annotated[
    bool | None, typer.Option("--kaslr/--no-kaslr", help="Keep address randomisation; off by default.")
]
Accel = Annotated[
    str | None, typer.Option(metavar="auto|kvm|tcg", help="Accelerator; auto uses KVM if it works here.")
]
Memory = Annotated[str | None, typer.Option(metavar="M", help="Guest RAM: 512 (MiB), 512M, 2G.")]
Cpus = Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of CPUs.")]
Disk = Annotated[
    str | None,
    typer.Option(metavar="F", help="Disk image to use and keep; by default each run has a new one."),
]
Initrd = Annotated[str | None, typer.Option(metavar="F", help="Boot this initramfs instead of vmdebug's.")]
Modules = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|none",
        help="The kernel's modules for the guest's /lib/modules: lib/modules/RELEASE, or the top of an"
        " unpacked package. By default they are found.",
    ),
]
Module = Annotated[
    list[str] | None,
    typer.Option(
        metavar="F.ko", help="Add a module file to the guest's, and load it when it has booted. Repeatable."
    ),
]
LoadModules = Annotated[
    bool | None,
    typer.Option(
        "--load-modules/--no-load-modules",
        help="Load the modules of --module, or only copy them for modprobe.",
    ),
]
Root = Annotated[
    str | None,
    typer.Option(
        metavar="X",
        help="Root file system: `host`, a directory, a disk image, debian:SUITE, or a container image: an OCI"
        " layout or archive, what `docker save` writes, docker://NAME. The guest's writes are discarded with"
        " the VM.",
    ),
]
RootDev = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="The partition of the root image; 0 is the whole disk."),
]
RootImage = Annotated[
    str | None,
    typer.Option(
        metavar="auto|always|never",
        help="Pack the root as an image first, so that the guest can be saved and cloned; auto does for"
        " debian:SUITE and container images.",
    ),
]
Init = Annotated[
    str | None,
    typer.Option(metavar="F|none", help="Program of the root file system to start as init, or only a shell."),
]
Login = Annotated[
    bool | None,
    typer.Option(
        "--login/--no-login", help="Ask for a login on the console; by default it has a root shell."
    ),
]
Share = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR[:GUESTDIR][:ro|rw|overlay]",
        help="Give the guest a directory of this machine, at the same path or at GUESTDIR; read-only, unless"
        " `rw` is given. `overlay` discards its writes. Repeatable.",
    ),
]
Keep = Annotated[
    bool | None, typer.Option("--keep/--no-keep", help="Keep what the guest writes to the root image.")
]
Net = Annotated[
    list[str] | None,
    typer.Option(
        metavar="user|none|bridge=NAME|segment=NAME",
        help="Network: QEMU's user network, a bridge of this machine, or a segment that only VMs are on."
        " Repeatable; `,ip=ADDRESS/LENGTH` and `,mac=MAC` may follow.",
    ),
]
Forward = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[ADDRESS:]HOST:GUEST[/udp]",
        help="Forward a port of this machine, on 127.0.0.1, to the guest; an empty HOST is any free port."
        " Repeatable.",
    ),
]
Firmware = Annotated[
    str | None,
    typer.Option(
        metavar="uefi|F",
        help="Boot through a firmware: `uefi` is the installed OVMF. By default QEMU loads the kernel.",
    ),
]
Tcp = Annotated[
    int | None,
    typer.Option(
        metavar="[PORT]",
        min=0,
        max=65535,
        help="Open the gdbstub on 127.0.0.1 instead of a socket; without PORT, on a free port.",
    ),
]
TraceReady = Annotated[
    str | None,
    typer.Option(
        metavar="auto|yes|no",
        help="Load the plugin with which QEMU collects traces at full speed; auto loads it where it works.",
    ),
]
Record = Annotated[
    str | None,
    typer.Option(
        metavar="[FILE.vmdrec]",
        help="Record the guest, for `vmdebug replay`: one CPU under TCG, without shares and network. Without"
        " FILE it is a new one of `vmdebug recording list`.",
    ),
]
OverrideInput = Annotated[
    list[str] | None, typer.Option(metavar="NAME URL", help="nix: replace an input of the flake. Repeatable.")
]
Impure = Annotated[bool, typer.Option("--impure", help="nix: let the flake read the environment.")]
NixArg = Annotated[
    list[str] | None, typer.Option(metavar="WORD", help="nix: pass an argument unchanged. Repeatable.")
]
AllowTrouble = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="KIND",
        help="Kind of kernel trouble that is no failure: panic, oops, warn, … Repeatable.",
    ),
]

Force = Annotated[
    bool, typer.Option("--force", help="Warn and continue if symbols and kernel are from different builds.")
]
