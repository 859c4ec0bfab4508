"""A guest defined by a Nix flake: `FLAKEREF#NAME`, or `FLAKEREF#` and the path of a VM derivation.

Evaluating a NixOS system takes seconds, so this evaluates it only once, to build the VM. It then finds the
kernel's symbols from the kernel in the VM (`runner.dev_of`), without evaluating. Only if that fails it
evaluates the attributes of the system's kernel.
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
    # `config.system.build.vm` is the VM of this variant, which may have another kernel than the
    # configuration itself.
    ("config", "virtualisation", "vmVariant", "system", "build", "kernel"),
    ("config", "system", "build", "kernel"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A derivation of a flake.

    Args:
        words: GUEST as the user wrote it.
        flake: The flake reference for nix.
        path: The attribute path of the derivation.
        system: NAME, if the path is in `nixosConfigurations.NAME`; "" otherwise.
        nix_args: The user's options for nix.
    """

    words: str
    flake: str
    path: tuple[str, ...]
    system: str
    nix_args: tuple[str, ...] = ()

    def installable(self, *path: str) -> str:
        """Return the installable of an attribute of the flake; without `path`, of the derivation."""
        return f"{self.flake}#{join(path or self.path)}"


def resolve(guest: Guest, options: GuestOptions, *, report: Report, deadline: Deadline) -> LaunchSpec:
    """Build the VM of a flake and its kernel's symbols; return what starts it.

    Raises:
        UsageError: the flake has no such attribute; the hint lists those that it has.
        HostError: nix is not installed.
        BuildError: nix failed; the detail has its messages.
        MismatchError: the symbols belong to another kernel.
        DeadlineError: nix took too long.
    """
    target = parse(guest, options.nix_args)
    found = runner.read(build(target, report, deadline), origin=f"the flake {guest.words}")
    dev: Path | str = ""
    if runner.wants_symbols(options):
        dev = dev_of(target, found.image, report, deadline)
    return runner.spec(found, dev, guest, options)


def parse(guest: Guest, nix_args: tuple[str, ...] = ()) -> Target:
    """Return the target of GUEST: `NAME`, `nixosConfigurations.NAME`, or a whole attribute path.

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
    """Split an attribute path into names; a name in double quotes may contain dots. See nix3(1)."""
    found = re.findall(r'"([^"]*)"|([^."]+)', path)
    return tuple(quoted or plain for quoted, plain in found)


def join(path: tuple[str, ...]) -> str:
    """Join names to an attribute path."""
    return ".".join(f'"{name}"' if "." in name else name for name in path)


def build(target: Target, report: Report, deadline: Deadline) -> Path:
    """Build a target, and return its store path.

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
    """Return the store path in an answer about one installable, which is one output."""
    return Path(next(iter(built[0].outputs.values())))


def _unknown(target: Target, report: Report, deadline: Deadline) -> UsageError:
    """Return the error for an attribute that does not exist; it lists those that do, most similar first."""
    names = _names(target, report, deadline)
    path = join(target.path)
    if not names:
        return UsageError(
            f"{target.flake} has no {path}, and no {SYSTEMS}",
            hint="is it the right flake? `nix flake show` lists its outputs",
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
    """Return the `dev` output of the kernel that the VM or the system boots, or why there is none.

    If nix does not know the derivation of the image, or it has no output `dev`, this evaluates the
    configuration's kernels, and uses one only if it is the kernel that boots.
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
            # Compare before building: building another kernel may take an hour.
            if Path(output) == nix.store_path(image):
                return _only(nix.ask(symbols, list[nix.Built], what=what, report=report, deadline=deadline))
        except BuildError as error:
            missing = nix.lacks_attribute(error)
            dev = f"{dev}; {join(kernel)}: {'not there' if missing else nix.reason(error)}"
        else:
            dev = f"{dev}; {join(kernel)}: another kernel"
    return dev
