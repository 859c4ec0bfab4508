"""`kernel check`: checks that all files for debugging a guest exist and match. It starts nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from vmdebug import arch, kimage
from vmdebug.arch import Arch
from vmdebug.errors import MismatchError
from vmdebug.guest import Kernel, LaunchSpec, RunnerMachine
from vmdebug.paths import or_false
from vmdebug.sources.configuration import dotconfig, lacks, requirements
from vmdebug.sources.configuration.dotconfig import Configuration
from vmdebug.sources.kernels import modules
from vmdebug.sources.kernels.dev_output import why_unusable
from vmdebug.spelling import option

State = Literal["ok", "warning", "bad"]
"""warning: something is missing or cannot be determined. bad: files do not belong together."""


class Row(msgspec.Struct, frozen=True):
    """A row of the table.

    Args:
        subject: What it is about: "vmlinux".
        state: Whether it is right.
        found: What was found.
        reason: Why it has this state, and what to do if it is not ok.
    """

    subject: str
    state: State
    found: str
    reason: str = ""


def table(spec: LaunchSpec) -> tuple[Row, ...]:
    """Return the table for a guest.

    Args:
        spec: The guest, resolved with `force`: a mismatch is a row, not an error.

    Raises:
        HostError: a file cannot be read.
    """
    return tuple(_rows(spec))


def _rows(spec: LaunchSpec) -> Iterator[Row]:
    kernel = spec.kernel
    configuration = dotconfig.of(kernel)
    yield _image(kernel)
    yield _vmlinux(kernel)
    yield _dwarf(kernel)
    yield _scripts(kernel)
    yield _constants(kernel, configuration)
    yield _modules(kernel)
    yield _source(kernel)
    match spec.machine:
        case RunnerMachine(kernel_override=True, script=script):
            yield _runner_needs(kernel, script)
        case RunnerMachine():
            yield Row("built-ins", "ok", "none needed", "the guest boots its own kernel and initrd")
        case _:
            yield _own_needs(configuration, arch.by_name(kernel.arch))


def _image(kernel: Kernel) -> Row:
    says = kimage.read_image(kernel.image)
    found = f"{kernel.image}, {kernel.origin}: {says.release or 'an unknown release'}"
    if says.unread:
        return Row("image", "warning", found, f"no build-id: {says.unread}")
    of = f"of the kernel inside, {says.compression}"
    if not says.build_id:
        return Row("image", "warning", found, f"no build-id in the note {of}")
    return Row("image", "ok", found, f"build-id {says.build_id}, {of}")


def _vmlinux(kernel: Kernel) -> Row:
    if kernel.vmlinux is None:
        return Row(
            "vmlinux",
            "warning",
            "none",
            f"GDB can only show addresses; give the vmlinux: {option('vmlinux', 'FILE')}",
        )
    found = f"{kernel.vmlinux}: {kimage.read_vmlinux(kernel.vmlinux).release or 'an unknown release'}"
    try:
        proof = kimage.check(kernel.image, kernel.vmlinux)
    except MismatchError as error:
        return Row("vmlinux", "bad", found, f"{error.message}; {error.hint}")
    reasons = {
        "build-id": f"build-id {kernel.build_id} in its note, the same as in the image",
        "banner": "has the version and build date of the image; there is no build-id to compare",
        "release": "has the release of the image; there is no build-id to compare",
        "none": "nothing shows whether it belongs to the image",
    }
    state: State = "ok" if proof == "build-id" else "warning"
    return Row("vmlinux", state, found, reasons[proof])


def _dwarf(kernel: Kernel) -> Row:
    there = kimage.dwarf(kernel.vmlinux) if kernel.vmlinux is not None else kimage.Dwarf()
    if not there.version:
        return Row(
            "DWARF",
            "warning",
            "none",
            f"no source lines, types or arguments; {kimage.WITHOUT_DWARF}",
        )
    packed = f", {there.compression}-compressed" if there.compression else ""
    where = f", in {there.file}, by its {there.how}" if there.file else ""
    split = f", split: {there.split} .dwo files" if there.split else ""
    found = f"version {there.version}{packed}{where}{split}"
    if there.lacking:
        return Row(
            "DWARF",
            "warning",
            found,
            f"no types and arguments from {len(there.lacking)} of these files, which do not exist:"
            f" {there.lacking[0]}; keep the build tree where it was built",
        )
    return Row("DWARF", "ok", found)


def _scripts(kernel: Kernel) -> Row:
    if kernel.vmlinux is not None and not kimage.dwarf(kernel.vmlinux).version:
        why = "they need the types of debugging information"
        return Row("gdb scripts", "warning", "none that can be loaded", why)
    if kernel.gdb_scripts is not None:
        return Row("gdb scripts", "ok", str(kernel.gdb_scripts))
    why = why_unusable(kernel.vmlinux.parent) if kernel.vmlinux is not None else "there is no vmlinux"
    return Row("gdb scripts", "warning", "none that can be loaded", f"{why}; run `vmdebug kernel scripts`")


_SWITCH = re.compile(r"^LX_CONFIG_(\w+) = ([01])$", re.MULTILINE)


def _constants(kernel: Kernel, configuration: Configuration | None) -> Row:
    path = kernel.gdb_scripts / "scripts/gdb/linux/constants.py" if kernel.gdb_scripts is not None else None
    if path is None or not or_false(path.is_file):
        return Row("constants.py", "warning", "none", "it is part of the gdb scripts")
    if configuration is None:
        return Row("constants.py", "warning", str(path), "there is no configuration to compare it with")
    switches = _SWITCH.findall(path.read_text(errors="replace"))
    other = [name for name, on in switches if (configuration.value(name) == "y") != (on == "1")]
    if other:
        return Row(
            "constants.py",
            "bad",
            str(path),
            f"generated for another configuration: CONFIG_{other[0]} is {configuration.value(other[0])} in"
            f" {configuration.origin}; run `make scripts_gdb` again",
        )
    return Row("constants.py", "ok", str(path), f"agrees with {configuration.origin}")


def _modules(kernel: Kernel) -> Row:
    there = modules.look(kernel)
    if not there.count:
        where = f"none in {kernel.modules}" if kernel.modules is not None else "none found"
        return Row("modules", "warning", where, "their symbols cannot be loaded")
    found = f"{there.count} in {kernel.modules}"
    if kernel.module_symbols:
        found += f", symbols in {', '.join(map(str, kernel.module_symbols))}"
    if there.belong and _lacks_symbols(kernel):
        return Row(
            "modules",
            "warning",
            found,
            "they have no debug information: no lines, types and arguments in them; install the kernel's -dbg"
            " or debuginfo package",
        )
    if there.belong:
        return Row("modules", "ok", found, f"vermagic {there.vermagic!r} is the kernel's")
    if there.belong is None:
        says = f"vermagic {there.vermagic!r} of {there.which}" if there.which else "no vermagic in them"
        return Row("modules", "warning", found, f"{says}: the kernel's own is unknown")
    return Row(
        "modules",
        "bad",
        found,
        f"{there.which} is from another build: vermagic {there.vermagic!r}, the kernel's is"
        f" {there.wanted!r}; build them with this kernel",
    )


def _lacks_symbols(kernel: Kernel) -> bool:
    """Return whether the kernel has debugging information, and its modules have none."""
    return (
        kernel.vmlinux is not None and bool(kimage.dwarf(kernel.vmlinux).version) and modules.stripped(kernel)
    )


_A_SOURCE = Path("init/main.c")


def _source(kernel: Kernel) -> Row:
    if kernel.source is None:
        return Row("source", "warning", "none", "GDB cannot show source lines")
    # Nix builds one level below, see kernels/dev_output.py.
    if any(or_false((top / _A_SOURCE).is_file) for top in (kernel.source, kernel.source.parent)):
        return Row("source", "ok", str(kernel.source))
    return Row(
        "source", "warning", str(kernel.source), f"it has no {_A_SOURCE}, so it is not the whole source"
    )


def _runner_needs(kernel: Kernel, script: Path) -> Row:
    needs = requirements.of_runner(script)
    seen = lacks.lacking(kernel, needs)
    if seen is None:
        return _unknown(", ".join(need.option for need in needs))
    found, origin = seen
    if not found:
        return Row(
            "built-ins",
            "ok",
            ", ".join(need.module or need.option for need in needs),
            f"according to {origin}",
        )
    return Row(
        "built-ins",
        "bad",
        f"lacking: {', '.join(map(str, found))}",
        f"the guest's initrd has only modules of its own kernel (according to {origin}):"
        f" {lacks.fix_command(kernel, found)}",
    )


def _own_needs(configuration: Configuration | None, row: Arch) -> Row:
    needs = requirements.own(row)
    names = [need.option for need in needs]
    if configuration is None:
        return _unknown(", ".join(names))
    lacking = lacks.in_configuration(configuration, needs)
    if not lacking:
        return Row("built-ins", "ok", ", ".join(names), f"according to {configuration.origin}")
    return Row(
        "built-ins",
        "warning",
        f"lacking: {', '.join(map(str, lacking))}",
        f"the guest will not reach its shell (according to {configuration.origin})",
    )


def _unknown(wanted: str) -> Row:
    return Row(
        "built-ins",
        "warning",
        f"needed: {wanted}",
        "the configuration is unknown: no .config beside the vmlinux, no config beside the image, no"
        " CONFIG_IKCONFIG=y",
    )
