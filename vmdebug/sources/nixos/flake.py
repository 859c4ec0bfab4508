"""A guest defined by a Nix flake: `FLAKEREF#NAME`, or `FLAKEREF#` and the path of a VM or a test.

Evaluating a NixOS system takes seconds, so this evaluates it only once, to build the VM. It then finds the
kernel's symbols from the kernel in the VM (`runner.dev_of`), without evaluating. Only if that fails does it
evaluate the attributes of the system's kernel.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest import Guest, LaunchSpec
from vmdebug.guest_options import GuestOptions
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

    def installable(self, *path: str, absolute: bool = True) -> str:
        """Return the installable of an attribute of the flake; without `path`, of the derivation.

        Args:
            path: The names of the attribute path.
            absolute: Whether nix takes the path as it is. Otherwise nix looks for it in `packages.SYSTEM` and
                `legacyPackages.SYSTEM` first, and so evaluates them; see nix3(1), "Flake output attribute".
        """
        return f"{self.flake}#{'.' if absolute else ''}{join(path or self.path)}"


def resolve(guest: Guest, options: GuestOptions, *, report: Report, deadline: Deadline) -> LaunchSpec:
    """Build the VM of a flake and its kernel's symbols; return what starts it.

    Raises:
        UsageError: the flake has no such attribute; the hint lists those that it has.
        HostError: nix is not installed.
        BuildError: nix failed; the detail has its messages.
        MismatchError: the symbols belong to another kernel.
        DeadlineError: nix took too long.
    """
    target = with_node(parse(guest, options.nix_args), report, deadline)
    found = runner.read(build(target, report, deadline), origin=f"the flake {guest.words}")
    dev: Path | str = ""
    if runner.wants_symbols(options):
        dev = dev_of(target, found.image, report, deadline)
    return runner.spec(found, dev, guest, options, report=report, deadline=deadline)


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
    what = f"building {target.words}"
    try:
        built = ask(target, nix.build_one, list[nix.Built], what=what, report=report, deadline=deadline)
    except BuildError as error:
        if nix.lacks_attribute(error):
            raise _unknown(target, report, deadline) from error
        raise
    return _only(built)


T = TypeVar("T")


class _Makes(Protocol):
    """A function that returns nix's command line for one installable."""

    def __call__(self, installable: str, /, *, nix_args: Sequence[str] = ()) -> list[str]: ...


def ask(
    target: Target,
    make: _Makes,
    kind: type[T],
    *path: str,
    what: str,
    report: Report,
    deadline: Deadline,
) -> T:
    """Ask nix about an attribute of a target's flake, by its absolute path.

    Args:
        target: The target, with the flake.
        make: Makes nix's command line for the attribute.
        kind: The type of the answer.
        path: The attribute path; without it, the target's.
        what: The name of the step, for the report and errors.
        report: Receives the progress.
        deadline: When to end nix.

    Raises:
        HostError: nix is not installed.
        BuildError: nix failed, or its answer is not a `kind`.
        DeadlineError: it took too long.
    """
    asked = partial(nix.ask, kind=kind, what=what, report=report, deadline=deadline)
    try:
        return asked(make(target.installable(*path), nix_args=target.nix_args))
    except BuildError as error:
        if not nix.lacks_attribute(error):
            raise
    # Nix 2.8 does not know the leading dot.
    return asked(make(target.installable(*path, absolute=False), nix_args=target.nix_args))


_NODES = """it:
  if it ? nodes then { nodes = builtins.attrNames it.nodes; vm = false; }
  else { nodes = [ ]; vm = it ? system.build.vm; }"""


class _Found(msgspec.Struct, frozen=True):
    """What an attribute is.

    Args:
        nodes: The nodes of a NixOS test.
        vm: Whether it is a configuration with a VM, as a test's node is.
    """

    nodes: list[str]
    vm: bool


def with_node(target: Target, report: Report, deadline: Deadline) -> Target:
    """Return a target's VM: that of the node, if the target is a NixOS test, its driver or a node.

    nixpkgs' nixos/lib/testing gives the test and its drivers `nodes`, the configurations by name. The test
    itself is not built, which would run it.

    Raises:
        UsageError: the test has several nodes.
        HostError: nix is not installed.
        DeadlineError: it took too long.
    """
    if target.system or target.path[-1] in ("vm", "vmWithBootLoader", "vmWithDisko"):
        return target
    what = f"looking for the nodes of {target.words}"
    try:
        found = ask(
            target,
            partial(nix.evaluate, apply=_NODES),
            _Found,
            what=what,
            report=report,
            deadline=deadline,
        )
    except BuildError:
        return target  # Building it fails likewise, and its error is about what the user asked for.
    if found.vm:
        return replace(target, path=(*target.path, "system", "build", "vm"))
    if not found.nodes:
        return target
    if len(found.nodes) > 1:
        names = ", ".join(f"{target.words}.nodes.{join((name,))}" for name in found.nodes)
        raise UsageError(
            f"{target.words} is a NixOS test with {len(found.nodes)} nodes", hint=f"give one of them: {names}"
        )
    return replace(target, path=(*target.path, "nodes", *found.nodes, "system", "build", "vm"))


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
    what = f"listing the systems of {target.flake}"
    names = partial(nix.evaluate, apply="builtins.attrNames")
    try:
        return ask(target, names, list[str], SYSTEMS, what=what, report=report, deadline=deadline)
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
        asked = partial(ask, target, what=what, report=report, deadline=deadline)
        try:
            output = asked(nix.evaluate, str, *kernel, "outPath")
            # Compare before building: building another kernel may take an hour.
            if Path(output) == nix.store_path(image):
                return _only(asked(nix.build_one, list[nix.Built], *kernel, "dev"))
        except BuildError as error:
            missing = nix.lacks_attribute(error)
            dev = f"{dev}; {join(kernel)}: {'not there' if missing else nix.reason(error)}"
        else:
            dev = f"{dev}; {join(kernel)}: another kernel"
    return dev
