"""A NixOS system of a flake on a machine: nixos-rebuild's and ssh's command lines, and its kernel.

nixos-rebuild is not replaced: building, copying, activating and going back are its own, see
nixos-rebuild(8). What is here builds its argv, and finds the kernel that a machine runs afterwards,
which is the configuration's own and not that of its VM.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from vmdebug import kimage, process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, HostError, UsageError
from vmdebug.guest import Guest, GuestOptions, Kernel
from vmdebug.progress import Report, Step
from vmdebug.sources import nix
from vmdebug.sources.kernel_scripts import prepare
from vmdebug.sources.kernel_scripts.script_parts import Wanted
from vmdebug.sources.nixos import flake, runner

Action = Literal["switch", "boot", "test"]

PROGRAMS = ("nixos-rebuild", "nixos-rebuild-ng")
"""The program by both its names; what nixpkgs calls `-ng` has become the only one."""

PACKAGES = ("nixos-rebuild-ng", "nixos-rebuild")

FACTS = ("nixos-generate-config", "--show-hardware-config")
"""Prints what the installer writes into hardware-configuration.nix; see nixos-generate-config(8)."""

BATCH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
"""ssh must not ask: it is run where nobody could answer."""

_TOPLEVEL = ("config", "system", "build", "toplevel")
_NO_NIXOS, _NO_SUDO, _SSH_FAILED = 90, 91, 255
_TARGET = re.compile(r"[^\s-]\S*")


@dataclass(frozen=True, slots=True)
class System:
    """A NixOS system that is built.

    Args:
        toplevel: Its store path.
        kernel: The one that it boots, with what belongs to it.
        notes: What the user should be told about that.
    """

    toplevel: Path
    kernel: Kernel
    notes: tuple[str, ...] = ()


def target_of(guest: Guest, nix_args: Sequence[str] = ()) -> flake.Target:
    """Return the system that GUEST names, as `nixosConfigurations.NAME.config.system.build.toplevel`.

    Raises:
        UsageError: GUEST is not a system of a flake.
    """
    if guest.kind != "flake":
        raise UsageError(
            f"{guest.words} is no NixOS system of a flake, and nothing else can be deployed",
            hint="write FLAKEREF#NAME for its nixosConfigurations.NAME",
        )
    found = flake.parse(guest, tuple(nix_args))
    if not found.system:
        raise UsageError(
            f"{guest.words} is not one of its flake's {flake.SYSTEMS}", hint=f"write {found.flake}#NAME"
        )
    return dataclasses.replace(found, path=(flake.SYSTEMS, found.system, *_TOPLEVEL))


def host_of(words: str) -> str:
    """Return a target host that ssh cannot take for one of its options.

    Raises:
        UsageError: it is none.
    """
    if not _TARGET.fullmatch(words):
        raise UsageError(f"{words!r} is no host", hint="write USER@HOST, as for ssh")
    return words


def argv(
    program: str | Path,
    action: Action,
    target: flake.Target,
    *,
    host: str,
    options: Sequence[str] = (),
    more: Sequence[str] = (),
) -> list[str]:
    """Return the command line that brings a system onto a machine; see nixos-rebuild(8).

    Args:
        program: nixos-rebuild.
        action: `switch` to it, now and at each boot; `boot` from the next boot on; `test` it until then.
        target: The system.
        host: USER@HOST.
        options: What `options_of` returned.
        more: The user's own words.
    """
    return [
        str(program),
        action,
        *("--flake", f"{target.flake}#{flake.join((target.system,))}"),
        *("--target-host", host),
        *options,
        *target.nix_args,
        *more,
    ]


def environment(of: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what is added to nixos-rebuild's environment: its ssh must not ask for passwords."""
    own = (os.environ if of is None else of).get("NIX_SSHOPTS", "")
    return {"NIX_SSHOPTS": " ".join(filter(None, (own, *BATCH)))}


def ssh(host: str, *words: str) -> list[str]:
    """Return the command line that has a host run a command, by its shell: sshd(8), "Login process"."""
    return ["ssh", *BATCH, host, "--", shlex.join(words)]


def facts(host: str, *, sudo: bool) -> list[str]:
    """Return the command line that prints a host's hardware configuration.

    Args:
        host: USER@HOST.
        sudo: Whether it runs as root, who alone sees some file systems' details.
    """
    return ssh(host, *(("sudo", "-n") if sudo else ()), *FACTS)


def preflight(host: str, *, sudo: bool) -> list[str]:
    """Return the command line that says whether a host lets us in, is NixOS, and lets us be root."""
    script = f"test -e /etc/NIXOS || exit {_NO_NIXOS}"
    if sudo:
        script += f"; sudo -n true || exit {_NO_SUDO}"
    return ssh(host, "sh", "-c", script)


def booted(host: str) -> list[str]:
    """Return the command line that prints the kernel image that a NixOS machine runs."""
    return ssh(host, "readlink", "-f", "/run/booted-system/kernel")


def options_of(program: Path, usage: str, *, sudo: bool) -> tuple[str, ...]:
    """Return a nixos-rebuild's own options for what we want of it.

    Args:
        program: It.
        usage: What its `--help` prints; nothing is said where its manual page is not found.
        sudo: Whether it has to become root on the target. `--sudo` is nixos-rebuild-ng's word, before that
            it was `--use-remote-sudo`.
    """
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", usage))
    ng = PROGRAMS[1] in str(program.resolve())
    root = "--sudo" if ng or "--sudo" in known else "--use-remote-sudo"
    # By itself it goes on as the nixos-rebuild of the flake's own nixpkgs, which may know other options.
    stay = ("--no-reexec",) if "--no-reexec" in known else ()
    return (*((root,) if sudo else ()), *stay)


def refused(host: str, done: process.Completed) -> HostError | BuildError:
    """Return the error for a command line of `ssh`, or one that uses it, that failed."""
    detail = f"{shlex.join(done.argv)}\n{process.tail(done.stderr or done.stdout)}"
    alone = host.rpartition("@")[2]
    match done.status:
        case 255 if "Permission denied" in done.stderr:
            what = f"{host} lets nobody in without a password"
            hint = f"put your key there: ssh-copy-id {host}; one with a passphrase has to be in ssh-agent"
        case 255 if "Host key verification failed" in done.stderr:
            what, hint = f"{host} is not known to ssh", f"look at its key, once by hand: ssh {host}"
        case 255:
            what, hint = f"ssh cannot connect to {host}", f"try by hand: ssh {host} true"
        case 90:
            what, hint = f"{host} does not run NixOS", "install it there, or write an image onto its disk"
        case 91:
            what = f"sudo on {host} wants a password"
            hint = f"deploy as root@{alone}, or set security.sudo.wheelNeedsPassword = false there"
        case status:
            return BuildError(f"a command on {host} ended with status {status}", detail=detail)
    return HostError(what, hint=hint, detail=detail)


def ask(host: str, argv: Sequence[str], *, deadline: Deadline) -> str:
    """Run a command line of `ssh`; return what it printed.

    Raises:
        HostError: ssh is not installed, or the host refuses.
        BuildError: the command failed.
        DeadlineError: it took too long.
    """
    program = process.find(argv[0], package="openssh-client")
    done = process.run([program, *argv[1:]], deadline=deadline, check=False)
    if done.status != 0:
        raise refused(host, done)
    return done.stdout


def find_program(target: flake.Target, *, report: Report, deadline: Deadline) -> Path:
    """Return nixos-rebuild: the one on PATH, else that of the target's flake or of its nixpkgs.

    Raises:
        HostError: there is none.
        DeadlineError: nix took too long.
    """
    for name in PROGRAMS:
        try:
            return process.find(name, package="nix-bin")
        except HostError:
            continue
    why = ""
    for argv in packages(target):
        try:
            built = nix.ask(
                argv, list[nix.Built], what="getting nixos-rebuild", report=report, deadline=deadline
            )
        except (BuildError, HostError) as error:
            why = f"{why}{shlex.join(argv)}\n{error.message}\n"
            continue
        output = Path(next(iter(built[0].outputs.values())))
        for name in PROGRAMS:
            if (output / "bin" / name).is_file():
                return output / "bin" / name
    raise HostError(
        f"there is no nixos-rebuild: not on PATH, nor as a package of {target.flake} or its nixpkgs",
        hint=f"packages.{os.uname().machine}-linux.nixos-rebuild = pkgs.nixos-rebuild-ng; in the flake gives"
        " it",
        detail=why,
    )


def packages(target: flake.Target) -> list[list[str]]:
    """Return the command lines that build nixos-rebuild, the first one that works to be taken."""
    own = [nix.build([f"{target.flake}#nixos-rebuild"], nix_args=target.nix_args)]
    # Nix takes no --override-input for the flake that inputs are from.
    inputs = ("--inputs-from", target.flake)
    return own + [nix.build([f"nixpkgs#{name}"], nix_args=inputs) for name in PACKAGES]


def usage(program: Path, *, deadline: Deadline) -> str:
    """Return what a nixos-rebuild says of its options: all of its manual page; "" where it can't."""
    done = process.run([program, "--help"], deadline=deadline, check=False)
    return f"{done.stdout}{done.stderr}"


def build(target: flake.Target, options: GuestOptions, *, report: Report, deadline: Deadline) -> System:
    """Build a system here, with its kernel's symbols.

    Raises:
        UsageError: the flake has no such system.
        HostError: nix is not installed.
        BuildError: nix failed.
        MismatchError: the symbols are of another kernel.
        DeadlineError: it took too long.
    """
    toplevel = flake.build(target, report, deadline)
    image = (toplevel / "kernel").resolve()
    modules = toplevel / "kernel-modules/lib/modules"
    bare = Kernel(
        image=image,
        arch=kimage.read_image(image).arch,
        origin=f"the system {target.words}",
        modules=modules if modules.is_dir() else None,
    )
    dev = flake.dev_of(target, image, report, deadline)
    kernel, why = runner.with_symbols(bare, dev, force=options.force)
    notes = (f"no symbols: {why}",) if why else ()
    if kernel.vmlinux is not None and kernel.gdb_scripts is None:
        made = prepare.at_hand(Wanted(kernel, kernel.vmlinux), report=report, deadline=deadline)
        if made is not None:
            kernel = msgspec.structs.replace(kernel, gdb_scripts=made.directory)
    return System(toplevel, kernel, notes)


def run(argv: Sequence[str | Path], host: str, *, what: str, report: Report, deadline: Deadline) -> None:
    """Run nixos-rebuild, and tell what it says.

    Args:
        argv: What `argv` returned.
        host: USER@HOST.
        what: The step's name.
        report: Told each line.
        deadline: When it is ended.

    Raises:
        HostError: the host refuses.
        BuildError: it failed.
        DeadlineError: it took too long.
    """
    report(Step(what))
    done = process.run(
        argv,
        env={**os.environ, **environment()},
        deadline=deadline,
        check=False,
        on_line=lambda line: report(Step(what, note=nix.plain(line))),
    )
    if done.status == 0:
        return
    if "Permission denied (" in done.stderr or done.status == _SSH_FAILED:
        raise refused(host, dataclasses.replace(done, status=_SSH_FAILED))
    raise BuildError(
        f"{what}: nixos-rebuild ended with status {done.status}",
        hint="the machine goes on as it was, unless it says otherwise below",
        detail=f"{shlex.join(done.argv)}\n{process.tail(done.stderr or done.stdout)}",
    )
