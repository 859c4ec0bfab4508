"""Gets the source and the configuration of a kernel that Nix built.

See nixpkgs' pkgs/os-specific/linux/kernel/build.nix: the derivation's `src` is a tarball or a directory,
and the kernel package's attributes `src` and `configfile` are those that it was built with. The derivation
of the kernel that boots comes first, since reading it evaluates nothing.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest import Guest, Kernel
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Report
from vmdebug.sources import nix
from vmdebug.sources.kernel_scripts.constants import Source
from vmdebug.sources.kernel_scripts.prepare import Fetch
from vmdebug.sources.nixos import flake

_WHAT = "getting the kernel's source"


class _Attributes(msgspec.Struct, frozen=True):
    """The attributes to read of a derivation with `__structuredAttrs`."""

    src: str


def fetch(
    kernel: Kernel, guest: Guest, options: GuestOptions, *, report: Report, deadline: Deadline
) -> Fetch | None:
    """Return a function that gets the source of a Nix kernel; None for any other kernel.

    Args:
        kernel: The kernel that boots.
        guest: What GUEST names.
        options: The options of its user.
        report: Receives the progress of nix.
        deadline: When to stop nix.
    """
    output = nix.store_path(kernel.image)
    if output is None:
        return None

    def get() -> Source:
        by_derivation = _of_derivation(output, report, deadline)
        if isinstance(by_derivation, Source):
            return by_derivation
        by_attributes: Source | str = "the guest is not from a flake"
        if guest.kind == "flake":
            target = flake.parse(guest, options.nix_args)
            by_attributes = _of_attributes(target, output, report, deadline)
        if isinstance(by_attributes, Source):
            return by_attributes
        raise UsageError(
            f"nix has no source for {output}: {by_derivation}; {by_attributes}",
            hint="give the kernel's source with --source",
        )

    return get


def _of_derivation(output: Path, report: Report, deadline: Deadline) -> Source | str:
    """Return the source from the derivation of an image, or why there is none."""
    try:
        drv = nix.run(nix.deriver(output), what=_WHAT, report=report, deadline=deadline).strip()
        if not drv.endswith(".drv"):
            return "nix does not know its derivation"
        source = Path(_src(drv, report, deadline))
        if not source.exists():
            _make(source, drv, report, deadline)
    except BuildError as error:
        return nix.reason(error)
    return Source(path=source, config=None) if source.exists() else f"{source} is not there"


def _src(drv: str, report: Report, deadline: Deadline) -> str:
    """Return a derivation's `src`: a variable, or in `__structuredAttrs`, which nixpkgs' kernels use.

    Raises:
        BuildError: it has none, or nix does not print it.
    """

    def ask(argv: list[str]) -> str:
        return nix.run(argv, what=_WHAT, report=report, deadline=deadline)

    with contextlib.suppress(BuildError):
        return ask(nix.binding(drv, "src")).strip()
    try:
        with contextlib.suppress(BuildError):
            return msgspec.json.decode(ask(nix.binding(drv, "__json")), type=_Attributes).src
        # Newer nix (2.34) has no variable for them, and prints derivations one level deeper.
        shown = msgspec.json.decode(ask(nix.show(drv)))
        (derivation,) = shown.get("derivations", shown).values()
        return msgspec.convert(derivation["structuredAttrs"], _Attributes).src
    except (AttributeError, LookupError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise BuildError(f"nix does not print the source of {drv}", detail=f"error: {error}") from error


def _make(source: Path, drv: str, report: Report, deadline: Deadline) -> None:
    """Build or fetch the source of a derivation, which is one of its inputs."""
    refers = nix.run(nix.references(drv), what=_WHAT, report=report, deadline=deadline).split()
    for each in (path for path in refers if path.endswith(".drv")):
        makes = nix.run(nix.outputs([each]), what=_WHAT, report=report, deadline=deadline).split()
        if str(source) in makes:
            nix.run(nix.realise_all(each), what=_WHAT, report=report, deadline=deadline)
            return


def _of_attributes(target: flake.Target, output: Path, report: Report, deadline: Deadline) -> Source | str:
    """Return `src` and `configfile` of the kernel that boots, by the flake, or why there are none."""
    why = f"{target.words} is not one of its {flake.SYSTEMS}"
    for path in flake.KERNELS if target.system else ():
        kernel = (flake.SYSTEMS, target.system, *path)
        try:
            own = flake.ask(
                target, nix.evaluate, str, *kernel, "outPath", what=_WHAT, report=report, deadline=deadline
            )
            if Path(own) != output:
                why = f"{flake.join(kernel)}: another kernel"
                continue
            source = _attribute(target, (*kernel, "src"), report, deadline)
            config = _attribute(target, (*kernel, "configfile"), report, deadline)
        except BuildError as error:
            why = f"{flake.join(kernel)}: {nix.reason(error)}"
        else:
            return Source(path=source, config=config.read_bytes())
    return why


def _attribute(target: flake.Target, path: tuple[str, ...], report: Report, deadline: Deadline) -> Path:
    """Return the store path of an attribute: a derivation, which this builds, or a path."""
    asked = partial(flake.ask, target, what=_WHAT, report=report, deadline=deadline)
    try:
        (built,) = asked(nix.build_one, list[nix.Built], *path)
        return Path(next(iter(built.outputs.values())))
    except BuildError:
        # A source inside the flake is a path: nix can evaluate it, but not build it.
        found = Path(asked(nix.evaluate, str, *path))
        if not found.exists():
            raise
        return found
