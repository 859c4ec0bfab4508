"""The options that say what a guest is, and how they become `GuestOptions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmdebug.cli import verb

if TYPE_CHECKING:
    from vmdebug.guest import GuestOptions

OVERRIDE = "--override-input"


def rewritten(words: list[str]) -> list[str]:
    """Return the words in a form that typer can parse.

    It knows no option whose value may be missing, and no repeatable one that takes two:
    `--tcp` without a port becomes `--tcp=0`, `--override-input NAME URL` one value.
    """
    done: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--tcp" and not (rest and rest[0].isdigit()):
            done.append("--tcp=0")
        elif word == OVERRIDE and len(rest) > 1:
            done += [word, f"{rest.pop(0)} {rest.pop(0)}"]
        else:
            done.append(word)
    return done


def given(guest: str | None, **options: Any) -> GuestOptions:
    """Return the guest that is meant: what vmdebug.toml says of it, overridden by the options given.

    Args:
        guest: GUEST, or None for the default one.
        options: Fields of `StartOptions`; None if the user did not give it.

    Raises:
        UsageError: the name or vmdebug.toml cannot be right.
    """
    from vmdebug import config
    from vmdebug.guest import changed

    return changed(config.lookup(guest), {key: value for key, value in options.items() if value is not None})


def nix_words(
    override_input: list[str] | None, impure: bool, nix_arg: list[str] | None
) -> tuple[str, ...] | None:
    """Return what is handed to nix; None when the user said nothing about it."""
    words = [part for pair in override_input or () for part in (OVERRIDE, *pair.split(maxsplit=1))]
    words += ["--impure"] if impure else []
    words += nix_arg or ()
    return tuple(words) or None


Guest = Annotated[
    str | None,
    typer.Argument(
        metavar="GUEST",
        help="FLAKEREF#NAME, a build tree, a run-*-vm script, a bzImage, `builtin`, or a [guest.NAME] of"
        " vmdebug.toml; without it vmdebug.toml's default, else `builtin`.",
        autocompletion=verb.complete_guest,
    ),
]
Halt = Annotated[
    bool | None,
    typer.Option("--halt/--no-halt", "-S", help="Stop at the reset vector, before the first instruction."),
]
Name = Annotated[str | None, typer.Option(metavar="N", help="What to call the VM; else made from GUEST.")]
Kernel = Annotated[
    str | None, typer.Option(metavar="IMAGE|TREE", help="Boot this kernel instead of the guest's own.")
]
Vmlinux = Annotated[
    str | None, typer.Option(metavar="F", help="Symbols, where they do not lie where they are looked for.")
]
GdbScripts = Annotated[
    str | None, typer.Option(metavar="DIR", help="Directory with vmlinux-gdb.py beside scripts/gdb.")
]
Append = Annotated[str | None, typer.Option(metavar="S", help="Kernel parameters to add.")]
Kaslr = Annotated[bool | None, typer.Option("--kaslr/--no-kaslr", help="Leave address randomisation on.")]
Accel = Annotated[
    str | None, typer.Option(metavar="auto|kvm|tcg", help="auto takes KVM where it is seen to work.")
]
Memory = Annotated[str | None, typer.Option(metavar="M", help="Guest RAM: 512 (MiB), 512M, 2G.")]
Cpus = Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of CPUs.")]
Disk = Annotated[
    str | None, typer.Option(metavar="F", help="Disk image to use and keep; else each run has a fresh one.")
]
Tcp = Annotated[
    int | None,
    typer.Option(
        metavar="[PORT]",
        min=0,
        max=65535,
        help="GDB on 127.0.0.1, not a socket; a free port unless given.",
    ),
]
OverrideInput = Annotated[
    list[str] | None, typer.Option(metavar="NAME URL", help="nix: take this for a flake's input. Repeatable.")
]
Impure = Annotated[bool, typer.Option("--impure", help="nix: let the flake see the machine.")]
NixArg = Annotated[
    list[str] | None, typer.Option(metavar="WORD", help="Hand a word to nix as it is. Repeatable.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Go on, with a warning, where symbols and kernel are of two builds.")
]
