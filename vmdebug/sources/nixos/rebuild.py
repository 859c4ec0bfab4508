"""Deploys a NixOS system of a flake to a machine: the command lines of nixos-rebuild and ssh.

nixos-rebuild(8) builds, copies and activates the system. This module builds its argv, and the kernel that
the machine runs afterwards, which is that of the configuration itself, not that of its VM.
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
from vmdebug.guest import Guest, Kernel
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Report, Step
from vmdebug.sources import nix
from vmdebug.sources.kernel_scripts import prepare
from vmdebug.sources.kernel_scripts.script_parts import Wanted
from vmdebug.sources.kernels import replacements
from vmdebug.sources.nixos import flake, runner

Action = Literal["switch", "boot", "test"]

PROGRAMS = ("nixos-rebuild", "nixos-rebuild-ng")
"""The names of the program; nixpkgs has replaced the first by the second."""

PACKAGES = ("nixos-rebuild-ng", "nixos-rebuild")

FACTS = ("nixos-generate-config", "--show-hardware-config")
"""Prints the contents of hardware-configuration.nix; see nixos-generate-config(8)."""

BATCH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
"""Options that keep ssh from asking questions."""

_TOPLEVEL = ("config", "system", "build", "toplevel")
_NO_NIXOS, _NO_SUDO, _SSH_FAILED = 90, 91, 255
_TARGET = re.compile(r"[^\s-]\S*")


@dataclass(frozen=True, slots=True)
class System:
    """A built NixOS system.

    Args:
        toplevel: Its store path.
        kernel: The kernel that it boots, with symbols and scripts.
        notes: Notes for the user.
    """

    toplevel: Path
    kernel: Kernel
    notes: tuple[str, ...] = ()


def target_of(guest: Guest, nix_args: Sequence[str] = ()) -> flake.Target:
    """Return the system that GUEST names, as `nixosConfigurations.NAME.config.system.build.toplevel`.

    Raises:
        UsageError: GUEST is not a NixOS system of a flake.
    """
    if guest.kind != "flake":
        raise UsageError(
            f"{guest.words} is not a NixOS system of a flake, and only these can be deployed",
            hint="write FLAKEREF#NAME for its nixosConfigurations.NAME",
        )
    found = flake.parse(guest, tuple(nix_args))
    if not found.system:
        raise UsageError(
            f"{guest.words} is not one of its flake's {flake.SYSTEMS}", hint=f"write {found.flake}#NAME"
        )
    return dataclasses.replace(found, path=(flake.SYSTEMS, found.system, *_TOPLEVEL))


def host_of(words: str) -> str:
    """Check a target host, which ssh must not take for an option, and return it.

    Raises:
        UsageError: it is invalid.
    """
    if not _TARGET.fullmatch(words):
        raise UsageError(f"{words!r} is not a host", hint="write USER@HOST, as for ssh")
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
    """Return the command line of nixos-rebuild that deploys a system; see nixos-rebuild(8).

    Args:
        program: The path of nixos-rebuild.
        action: `switch` activates the system now and at each boot, `boot` from the next boot on, `test`
            only now.
        target: The system.
        host: USER@HOST.
        options: The result of `options_of`.
        more: The user's arguments.
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
    """Return variables to add to nixos-rebuild's environment: its ssh must not ask for passwords."""
    own = (os.environ if of is None else of).get("NIX_SSHOPTS", "")
    return {"NIX_SSHOPTS": " ".join(filter(None, (own, *BATCH)))}


def ssh(host: str, *words: str) -> list[str]:
    """Return the command line that runs a command on a host, in its shell: sshd(8), "Login process"."""
    return ["ssh", *BATCH, host, "--", shlex.join(words)]


def facts(host: str, *, sudo: bool) -> list[str]:
    """Return the command line that prints a host's hardware configuration.

    Args:
        host: USER@HOST.
        sudo: Whether it runs as root: only root sees the details of some file systems.
    """
    return ssh(host, *(("sudo", "-n") if sudo else ()), *FACTS)


def preflight(host: str, *, sudo: bool) -> list[str]:
    """Return the command line that checks that we can log in to a host, that it is NixOS, and sudo."""
    script = f"test -e /etc/NIXOS || exit {_NO_NIXOS}"
    if sudo:
        script += f"; sudo -n true || exit {_NO_SUDO}"
    return ssh(host, "sh", "-c", script)


def booted(host: str) -> list[str]:
    """Return the command line that prints the kernel image that a NixOS machine runs."""
    return ssh(host, "readlink", "-f", "/run/booted-system/kernel")


def options_of(program: Path, usage: str, *, sudo: bool) -> tuple[str, ...]:
    """Return the options for a nixos-rebuild, which differ between versions.

    Args:
        program: Its path.
        usage: The output of its `--help`; empty if its manual page is not found.
        sudo: Whether it has to become root on the target. nixos-rebuild-ng has `--sudo`, the older one
            `--use-remote-sudo`.
    """
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", usage))
    ng = PROGRAMS[1] in str(program.resolve())
    root = "--sudo" if ng or "--sudo" in known else "--use-remote-sudo"
    # By default it executes the nixos-rebuild of the flake's nixpkgs, which may have other options.
    stay = ("--no-reexec",) if "--no-reexec" in known else ()
    return (*((root,) if sudo else ()), *stay)


def failure(host: str, done: process.Completed) -> HostError | BuildError:
    """Return the error for a failed command line of ssh, or one that uses it."""
    detail = f"{shlex.join(done.argv)}\n{process.tail(done.stderr or done.stdout)}"
    alone = host.rpartition("@")[2]
    match done.status:
        case 255 if "Permission denied" in done.stderr:
            what = f"{host} does not accept a login without a password"
            hint = f"copy your key to it: ssh-copy-id {host}; load a key with a passphrase into ssh-agent"
        case 255 if "Host key verification failed" in done.stderr:
            what, hint = f"{host} is not known to ssh", f"check its key once: ssh {host}"
        case 255:
            what, hint = f"ssh cannot connect to {host}", f"try: ssh {host} true"
        case 90:
            what, hint = f"{host} does not run NixOS", "install NixOS, or write a disk image to its disk"
        case 91:
            what = f"sudo on {host} asks for a password"
            hint = f"deploy as root@{alone}, or set security.sudo.wheelNeedsPassword = false on it"
        case status:
            return BuildError(f"a command on {host} ended with status {status}", detail=detail)
    return HostError(what, hint=hint, detail=detail)


def ask(host: str, argv: Sequence[str], *, deadline: Deadline) -> str:
    """Run a command line of ssh, and return its output.

    Raises:
        HostError: ssh is not installed, or the host refuses the login.
        BuildError: the command failed.
        DeadlineError: it took too long.
    """
    program = process.find(argv[0], package="openssh-client")
    done = process.run([program, *argv[1:]], deadline=deadline, check=False)
    if done.status != 0:
        raise failure(host, done)
    return done.stdout


def find_program(target: flake.Target, *, report: Report, deadline: Deadline) -> Path:
    """Return nixos-rebuild: from PATH, or else from the target's flake or its nixpkgs.

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
        f"there is no nixos-rebuild on PATH, and no such package in {target.flake} or its nixpkgs",
        hint=f"add to the flake: packages.{os.uname().machine}-linux.nixos-rebuild = pkgs.nixos-rebuild-ng;",
        detail=why,
    )


def packages(target: flake.Target) -> list[list[str]]:
    """Return the command lines that build nixos-rebuild; the first that works is the one to use."""
    own = [nix.build([f"{target.flake}#nixos-rebuild"], nix_args=target.nix_args)]
    # nix does not accept --override-input for the flake of `--inputs-from`.
    inputs = ("--inputs-from", target.flake)
    return own + [nix.build([f"nixpkgs#{name}"], nix_args=inputs) for name in PACKAGES]


def usage(program: Path, *, deadline: Deadline) -> str:
    """Return the help of a nixos-rebuild, its manual page; "" if that is not found."""
    done = process.run([program, "--help"], deadline=deadline, check=False)
    return f"{done.stdout}{done.stderr}"


def build(target: flake.Target, options: GuestOptions, *, report: Report, deadline: Deadline) -> System:
    """Build a system on this machine, with its kernel's symbols.

    Raises:
        UsageError: the flake has no such system.
        HostError: nix is not installed.
        BuildError: nix failed.
        MismatchError: the symbols belong to another kernel.
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
    notes = (f"{replacements.NONE}{why}",) if why else ()
    if kernel.vmlinux is not None and kernel.gdb_scripts is None:
        made = prepare.without_build(Wanted(kernel, kernel.vmlinux), report=report, deadline=deadline)
        if made is not None:
            kernel = msgspec.structs.replace(kernel, gdb_scripts=made.directory)
    return System(toplevel, kernel, notes)


def run(argv: Sequence[str | Path], host: str, *, what: str, report: Report, deadline: Deadline) -> None:
    """Run nixos-rebuild, and report its output.

    Args:
        argv: The result of `argv`.
        host: USER@HOST.
        what: The name of the step.
        report: Receives each line.
        deadline: When to stop it.

    Raises:
        HostError: the host refuses the login.
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
        raise failure(host, dataclasses.replace(done, status=_SSH_FAILED))
    raise BuildError(
        f"{what}: nixos-rebuild ended with status {done.status}",
        hint="the machine is unchanged unless the output below says otherwise",
        detail=f"{shlex.join(done.argv)}\n{process.tail(done.stderr or done.stdout)}",
    )
