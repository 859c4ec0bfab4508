"""A guest that a Nix flake defines: `FLAKEREF#NAME`, or `FLAKEREF#` and the whole path of a VM derivation.

The evaluation of a NixOS system takes seconds, so it is asked for as seldom as can be: one
`nix build` of the VM; the kernel's symbols are then found by the kernel that the VM has
(`runner.dev_of`), without evaluating anything, and only where that fails by attributes.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest import Guest, GuestOptions, LaunchSpec
from vmdebug.progress import Report
from vmdebug.sources import nix
from vmdebug.sources.nixos import runner

SYSTEMS = "nixosConfigurations"
_VM = ("config", "system", "build", "vm")

KERNELS = (
    # `config.system.build.vm` is the VM of this variant; where it changes the kernel, the
    # configuration's own is the wrong one.
    ("config", "virtualisation", "vmVariant", "system", "build", "kernel"),
    ("config", "system", "build", "kernel"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What is built, and by which flake.

    Args:
        words: GUEST as its user wrote it.
        flake: The flake reference, as nix gets it.
        path: The attribute path of the VM derivation.
        system: NAME of `nixosConfigurations.NAME`, where the path is inside one; "" otherwise.
        nix_args: The user's own options for nix.
    """

    words: str
    flake: str
    path: tuple[str, ...]
    system: str
    nix_args: tuple[str, ...] = ()

    def installable(self, *path: str) -> str:
        """Return what nix takes for an attribute of the flake; without `path`, for the VM."""
        return f"{self.flake}#{join(path or self.path)}"


def resolve(guest: Guest, options: GuestOptions, *, report: Report, deadline: Deadline) -> LaunchSpec:
    """Build the VM of a flake, with its kernel's symbols; return what starts it.

    Raises:
        UsageError: the flake has no such attribute; the hint has those that it has.
        HostError: nix is not installed.
        BuildError: nix failed; the detail has its own words.
        MismatchError: the symbols are of another kernel.
        DeadlineError: nix took too long.
    """
    target = parse(guest, options.nix_args)
    found = runner.read(build(target, report, deadline), origin=f"the flake {guest.words}")
    dev: Path | str = ""
    if runner.wants_symbols(options):
        dev = dev_of(target, found.image, report, deadline)
    return runner.spec(found, dev, guest, options)


def parse(guest: Guest, nix_args: tuple[str, ...] = ()) -> Target:
    """Return what GUEST names: `NAME`, `nixosConfigurations.NAME`, or a whole path.

    Raises:
        UsageError: nothing follows the `#`.
    """
    path = split(guest.attribute)
    match path:
        case ():
            raise UsageError(
                f"{guest.words} names a flake, but no system in it",
                hint=f"write {guest.location}#NAME for its {SYSTEMS}.NAME",
            )
        case (name,) | ("nixosConfigurations", name):
            return Target(guest.words, guest.location, (SYSTEMS, name, *_VM), name, nix_args)
        case ("nixosConfigurations", name, *_):
            return Target(guest.words, guest.location, path, name, nix_args)
    return Target(guest.words, guest.location, path, "", nix_args)


def split(path: str) -> tuple[str, ...]:
    """Return the names of an attribute path; a name in double quotes may have dots. See nix3(1)."""
    found = re.findall(r'"([^"]*)"|([^."]+)', path)
    return tuple(quoted or plain for quoted, plain in found)


def join(path: tuple[str, ...]) -> str:
    """Return the attribute path of names."""
    return ".".join(f'"{name}"' if "." in name else name for name in path)


def build(target: Target, report: Report, deadline: Deadline) -> Path:
    """Build what a target's path names; return its store path.

    Raises:
        UsageError: the flake has no such attribute.
        HostError: nix is not installed.
        BuildError: nix failed.
        DeadlineError: it took too long.
    """
    argv = nix.build([target.installable()], nix_args=target.nix_args)
    what = f"building {target.words}"
    try:
        built = nix.ask(argv, list[nix.Built], what=what, report=report, deadline=deadline)
    except BuildError as error:
        if nix.lacks_attribute(error):
            raise _unknown(target, report, deadline) from error
        raise
    return _only(built)


def _only(built: list[nix.Built]) -> Path:
    """Return the store path of an answer about one installable, which is one output."""
    return Path(next(iter(built[0].outputs.values())))


def _unknown(target: Target, report: Report, deadline: Deadline) -> UsageError:
    """Return the error for an attribute that does not exist; it names those that do, the nearest first."""
    names = _names(target, report, deadline)
    path = join(target.path)
    if not names:
        return UsageError(
            f"{target.flake} has no {path}, and no {SYSTEMS}",
            hint="is it the right flake? `nix flake show` lists what it has",
        )
    if target.system in names:
        return UsageError(
            f"{target.flake} has {join((SYSTEMS, target.system))}, but not {path}",
            hint=f"the VM of a NixOS system is {join((SYSTEMS, target.system, *_VM))}",
        )
    wanted = target.system or path
    near = difflib.get_close_matches(wanted, names, n=len(names), cutoff=0.0)
    missing = join((SYSTEMS, wanted)) if target.system else path
    return UsageError(
        f"{target.flake} has no {missing}",
        hint=f"its systems: {', '.join(join((name,)) for name in near)}",
    )


def _names(target: Target, report: Report, deadline: Deadline) -> list[str]:
    installable = target.installable(SYSTEMS)
    argv = nix.evaluate(installable, apply="builtins.attrNames", nix_args=target.nix_args)
    what = f"listing the systems of {target.flake}"
    try:
        return nix.ask(argv, list[str], what=what, report=report, deadline=deadline)
    except BuildError as error:
        if nix.lacks_attribute(error):
            return []
        raise


def dev_of(target: Target, image: Path, report: Report, deadline: Deadline) -> Path | str:
    """Return the `dev` output of the kernel that the VM, or the system, boots, or why there is none.

    Where nix does not know the derivation, or it has no output `dev`, the configuration's
    attributes are asked, and believed only if their kernel is the one that boots.
    """
    dev = runner.dev_of(image, report=report, deadline=deadline)
    if isinstance(dev, Path) or not target.system:
        return dev
    for path in KERNELS:
        kernel = (SYSTEMS, target.system, *path)
        what = f"looking for the symbols in {join(kernel)}"
        outputs = nix.evaluate(target.installable(*kernel, "outPath"), nix_args=target.nix_args)
        symbols = nix.build([target.installable(*kernel, "dev")], nix_args=target.nix_args)
        try:
            output = nix.ask(outputs, str, what=what, report=report, deadline=deadline)
            # Compared before it is built: the kernel of another configuration may take an hour.
            if Path(output) == nix.store_path(image):
                return _only(nix.ask(symbols, list[nix.Built], what=what, report=report, deadline=deadline))
        except BuildError as error:
            missing = nix.lacks_attribute(error)
            dev = f"{dev}; {join(kernel)}: {'not there' if missing else nix.reason(error)}"
        else:
            dev = f"{dev}; {join(kernel)}: another kernel"
    return dev
