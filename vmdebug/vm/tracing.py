"""Decides whether QEMU loads the plugin that collects traces, and says why not."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, StateError
from vmdebug.guest import LaunchSpec
from vmdebug.progress import Report
from vmdebug.spelling import option
from vmdebug.trace.plugin import program
from vmdebug.vm.argv import RealAccel
from vmdebug.vm.features import Features
from vmdebug.vm.rundir import RunDir


class Tracing(msgspec.Struct, frozen=True, kw_only=True):
    """The plugin of a VM.

    Args:
        plugin: Its binary; None: QEMU loads none.
        untraceable: Why there is none, or why it only counts; "" if it collects everything.
    """

    plugin: Path | None = None
    untraceable: str = ""


def choose(
    spec: LaunchSpec,
    *,
    qemu: Path,
    features: Features,
    accel: RealAccel,
    own_accel: bool,
    report: Report,
    deadline: Deadline,
) -> Tracing:
    """Return the plugin that QEMU loads: with `auto`, where it can read the guest's registers.

    Args:
        spec: What is started.
        qemu: The emulator.
        features: Its features; without a version it is not known.
        accel: The accelerator.
        own_accel: Whether vmdebug chooses the accelerator.
        report: Called before the plugin is compiled.
        deadline: For the compiler and a first try.

    Raises:
        HostError: the user wants the plugin, and it cannot be loaded here.
    """
    if spec.trace_ready == "no":
        return Tracing(untraceable=f"the VM was started with {option('trace_ready', 'no')}")
    try:
        _check(features, accel, own_accel=own_accel)
        loadable = program.loadable(qemu, report=report, deadline=deadline)
        if not loadable.version:
            raise _too_old(f"QEMU {features.version} accepts no version of its plugin API that vmdebug has")
        untraceable = "" if loadable.reads else cannot_read(features.version)
        if untraceable and spec.trace_ready == "auto":
            return Tracing(untraceable=untraceable)
        plugin = program.built(loadable.version, report=report, deadline=deadline)
    except HostError as error:
        if spec.trace_ready == "yes":
            raise
        return Tracing(untraceable=error.message)
    return Tracing(plugin=plugin, untraceable=untraceable)


def _check(features: Features, accel: RealAccel, *, own_accel: bool) -> None:
    """Check that this QEMU could load a plugin.

    Raises:
        HostError: it could not.
    """
    if not own_accel or accel != "tcg":
        what = f"not {accel.upper()}" if own_accel else "and the runner chooses one itself"
        raise HostError(
            f"the plugin that collects traces needs the accelerator TCG, {what}",
            hint=f"start with {option('accel', 'tcg')}",
        )
    if not features.plugins:
        name = f"QEMU {features.version}" if features.version else "the QEMU of the runner"
        raise _too_old(f"{name} loads no plugins")


def _too_old(message: str) -> HostError:
    return HostError(message, hint="put QEMU 9.2 or newer first on PATH")


def cannot_read(version: str) -> str:
    """Return the reason why the plugin of an older QEMU only counts."""
    return f"QEMU {version}'s plugins cannot read registers; 9.2 or newer can"


def check_loaded(rundir: RunDir, untraceable: str, others: str, *, reads: bool) -> None:
    """Check that QEMU has loaded the plugin.

    Args:
        rundir: The VM's directory.
        untraceable: See `Tracing`.
        others: Who can collect without it, for the error.
        reads: Whether it must read registers and memory.

    Raises:
        StateError: it has not, or an older QEMU does not let it read them.
    """
    if rundir.trace.exists() and not (untraceable and reads):
        return
    newer = "TCG, QEMU 9.2 or newer, and " if reads else ""  # what an older plugin cannot do
    raise StateError(
        untraceable or "QEMU has not loaded the plugin",
        hint=f"let {others} collect it, or start the VM anew with {newer}{option('trace_ready', 'yes')}",
    )
