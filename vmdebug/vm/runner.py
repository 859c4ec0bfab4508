"""Builds the command and environment of a NixOS VM runner, and reads QEMU's options in its script; pure.

See nixos/modules/virtualisation/qemu-vm.nix of nixpkgs. The script's QEMU command line ends in `$QEMU_OPTS
"$@"`. The shell splits and globs the variable, but not the arguments, so vmdebug passes arguments and leaves
the variable to the user.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from vmdebug.arch import Arch
from vmdebug.errors import UsageError
from vmdebug.guest import LaunchSpec, RunnerMachine
from vmdebug.network import RUNNER_VARIABLE
from vmdebug.vm import argv, directories, disks, qemuargs
from vmdebug.vm.argv import RealAccel
from vmdebug.vm.features import Features
from vmdebug.vm.qemuargs import Options
from vmdebug.vm.rundir import RunDir

DISK = "disk.qcow2"
"""File name of a run's new disk in its scratch directory; the script makes it."""

_QEMU = re.compile(r"(?<![^\s\"'=])/\S*?/qemu-(?:system-\w+|kvm)\b")
_COMMAND = re.compile(r"(?<![^\s\"'=/])qemu-(?:system-\w+|kvm)\b[\"']?")
_END = frozenset({";", "&", "&&", "|", "||"})
_USERS = ("$QEMU_OPTS", "${QEMU_OPTS}")


def command(
    spec: LaunchSpec,
    machine: RunnerMachine,
    *,
    given: Options,
    accel: RealAccel,
    arch: Arch,
    rundir: RunDir,
    features: Features,
    plugin: Path | None = None,
) -> tuple[str, ...]:
    """Return the command line of the runner.

    Args:
        spec: What to start.
        machine: Its `machine`.
        given: The options that the script itself gives; see `options`.
        accel: The chosen accelerator.
        arch: The kernel's architecture.
        rundir: Where its sockets and logs are.
        features: The features of its QEMU.
        plugin: The plugin that collects traces, or None.
    """
    every = given + qemuargs.parse(spec.qemu_args)
    return (
        str(machine.script),
        *accelerator(given, arch, accel),
        *(("-m", str(spec.memory)) if spec.memory else ()),
        *(("-smp", str(spec.cpus)) if spec.cpus else ()),
        *(("-initrd", str(machine.initrd)) if machine.initrd is not None else ()),
        *disks.modules(machine.modules),
        *(word for number, each in enumerate(spec.shares) for word in directories.p9(each, f"fs{number}")),
        *argv.harness(spec, arch=arch, rundir=rundir, features=features, given=every, plugin=plugin),
        *spec.qemu_args,
    )


def options(script: str, *, inherited: Mapping[str, str]) -> Options:
    """Return the QEMU options of a script and of the user's QEMU_OPTS.

    Shell variables are not expanded: `file="$NIX_DISK_IMAGE"` stays unchanged.

    Args:
        script: The script's text.
        inherited: The script's environment.
    """
    found = list(_COMMAND.finditer(script))
    words: list[str] = []
    for word in _words(script[found[-1].end() :]) if found else ():
        if word in _END:
            break
        words += inherited.get("QEMU_OPTS", "").split() if word in _USERS else () if word == "$@" else (word,)
    return qemuargs.parse(words)


def _words(text: str) -> list[str]:
    """Return the words of the shell command at the start of a text."""
    lines = text.replace("\\\n", " ").split("\n")
    for count in range(1, len(lines) + 1):
        with contextlib.suppress(ValueError):  # the quotation ends on a later line
            return shlex.split("\n".join(lines[:count]))
    return lines[0].split()


def accelerator(given: Options, arch: Arch, accel: RealAccel) -> tuple[str, ...]:
    """Choose the accelerator, and a CPU that works with it.

    QEMU accepts `-machine accel=` in addition to the script's own `-machine`, but not with `-accel`. If the
    script has an `-accel`, keep it.

    Args:
        given: The script's own options.
        arch: The kernel's architecture.
        accel: The chosen accelerator.
    """
    if _chosen(given):
        return ()
    hosts = given.values("model", "cpu")[-1:] == ("host",)
    return ("-machine", f"accel={accel}", *(("-cpu", arch.cpu) if accel == "tcg" and hosts else ()))


def chooses_accelerator(script: str) -> bool:
    """Whether a script has an option that vmdebug's choice of the accelerator does not override."""
    return _chosen(options(script, inherited={}))


def _chosen(given: Options) -> bool:
    return bool(given.named("accel", "enable-kvm"))


def environment(
    spec: LaunchSpec, machine: RunnerMachine, *, scratch: Path, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables to add to the runner's environment.

    Args:
        spec: What to start.
        machine: Its `machine`.
        scratch: The run's scratch directory, which exists before the script starts.
        inherited: The inherited variables; the user's kernel parameters come last, so that they override
            others.

    Raises:
        UsageError: a path has blanks, at which the script would split it.
    """
    variables = {
        "NIX_DISK_IMAGE": str(machine.disk or scratch / DISK),
        # The script uses TMPDIR as its state directory if both are set.
        "TMPDIR": str(scratch),
        "USE_TMPDIR": "1",
    }
    parameters = (*spec.parameters, *inherited.get("QEMU_KERNEL_PARAMS", "").split())
    if parameters:
        variables["QEMU_KERNEL_PARAMS"] = " ".join(parameters)
    forwards = [f"hostfwd={each.rule}" for nic in spec.nics for each in nic.forwards]
    if forwards:
        # The user's own come last.
        variables[RUNNER_VARIABLE] = ",".join(
            (*forwards, *filter(None, [inherited.get(RUNNER_VARIABLE, "")]))
        )
    if machine.kernel_override:
        variables[kernel_variable(machine.system_name)] = _unquoted(spec.kernel.image)
    return variables


def kernel_variable(system_name: str) -> str:
    """Return the name of the variable that sets another kernel image."""
    return "NIXPKGS_QEMU_KERNEL_" + re.sub(r"[^a-zA-Z0-9]", "_", system_name)


def qemu(script: str) -> Path | None:
    """Return the absolute path of the QEMU that a script starts; None if it contains none."""
    found = _QEMU.findall(script)
    return Path(found[-1]) if found else None


def _unquoted(path: Path) -> str:
    """Check that a shell does not change a path that is not quoted, and return it."""
    if not re.fullmatch(r"/[\w./+@%:,=^~-]*", str(path)):
        raise UsageError(
            f"the kernel image {path} cannot be passed to a runner script: its path has blanks or"
            " characters that a shell expands",
            hint="move it, or make a link to it in another directory",
        )
    return str(path)
