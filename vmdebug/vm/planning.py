"""Plans a launch: finds QEMU, its features and the accelerator, and builds the command; starts nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import assert_never

import msgspec

from vmdebug import arch as arches
from vmdebug import process
from vmdebug.arch import Arch
from vmdebug.deadline import LAUNCH_SECONDS, Deadline
from vmdebug.errors import HostError, UsageError
from vmdebug.guest import LaunchSpec, OwnMachine, ReplayMachine, RunnerMachine
from vmdebug.progress import Report, silent
from vmdebug.recording import refusal
from vmdebug.spelling import option
from vmdebug.vm import (
    accel,
    argv,
    disks,
    features,
    qemuargs,
    record_log,
    recorded,
    rundir,
    runner,
    runtime_directory,
    segment,
    tracing,
)
from vmdebug.vm.accel import Choice, Subject
from vmdebug.vm.argv import BOOT, InitialState, RealAccel
from vmdebug.vm.disks import DiskFormat
from vmdebug.vm.features import Features
from vmdebug.vm.record_log import LogFormat
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.tracing import Tracing


class Plan(msgspec.Struct, frozen=True):
    """How a VM is started.

    Args:
        argv: The command.
        env: The variables added to its environment.
        accel: The accelerator.
        reason: Why that accelerator, in words.
        untraceable: See `vmdebug.vm.state.State`.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    accel: RealAccel
    reason: str
    untraceable: str = ""

    def line(self) -> str:
        """Return the command as a line for a shell."""
        return process.shell_line(self.argv, self.env)


class Resources(msgspec.Struct, frozen=True):
    """The host's resources for a spec.

    Args:
        qemu: The emulator. For a runner that names none, the one on PATH; the runner may use another one.
        arch: The kernel's architecture.
        choice: The accelerator.
        features: The emulator's features.
        script: A runner's text, or "".
        disk_format: The format of `OwnMachine.disk`.
        tracing: The plugin that collects traces.
        record: The format of QEMU's log, if the guest is recorded.
    """

    qemu: Path
    arch: Arch
    choice: Choice
    features: Features
    script: str = ""
    disk_format: DiskFormat | None = None
    tracing: Tracing = Tracing()
    record: LogFormat | None = None


def plan(spec: LaunchSpec, *, report: Report = silent, timeout: float = LAUNCH_SECONDS) -> Plan:
    """Return how a VM would be started; may boot the kernel once to find out whether KVM works.

    Args:
        spec: What would be started.
        report: Called with each step that takes long.
        timeout: Seconds for all of it.

    Raises:
        UsageError: the spec is wrong.
        HostError: the machine lacks something.
        DeadlineError: it took too long.
    """
    rundir.check_name(spec.name)
    directory = RunDir(runtime_directory.location() / spec.name)
    directory.check()
    found = resources(spec, report=report, deadline=Deadline.after(timeout))
    plugged = msgspec.structs.replace(spec, nics=segment.preview(spec.nics, spec.name))
    return build(plugged, found, directory)


def resources(spec: LaunchSpec, *, report: Report, deadline: Deadline) -> Resources:
    """Return the host's resources for a spec.

    Raises:
        UsageError: the spec is wrong.
        HostError: the machine lacks something.
    """
    arch = arches.by_name(spec.kernel.arch)
    argv.check_extra(qemuargs.parse(spec.qemu_args), qemu=arch.qemu)
    refusal.check(spec)
    script, named = "", None
    if isinstance(spec.machine, RunnerMachine):
        script = _text(spec.machine.script)
        named = runner.qemu(script)
    known = named is not None and os.access(named, os.X_OK)
    qemu = named if named and known else process.find(arch.qemu, package=arch.qemu_package)
    if isinstance(spec.machine, ReplayMachine):
        qemu = spec.machine.qemu
    subject = Subject(qemu, arch, spec.kernel.image)
    own = not isinstance(spec.machine, RunnerMachine)
    if spec.record is not None or isinstance(spec.machine, ReplayMachine):
        chosen = Choice("tcg", "only TCG counts instructions, which a recording needs")
    else:
        chosen = accel.choose(spec.accel, subject, report=report, deadline=deadline)
    # Assume the minimum for a runner's QEMU that is not known.
    has = features.of(qemu, deadline=deadline) if own or known else Features()
    if own:
        check_network(spec, has, qemu)
    return Resources(
        qemu=qemu,
        arch=arch,
        choice=chosen,
        features=has,
        script=script,
        disk_format=_disk_format(spec.machine),
        tracing=tracing.choose(
            spec,
            qemu=qemu,
            features=has,
            accel=chosen.accel,
            own_accel=own or not runner.chooses_accelerator(script),
            report=report,
            deadline=deadline,
        ),
        record=record_log.of(qemu, deadline=deadline) if spec.record is not None else None,
    )


def check_network(spec: LaunchSpec, has: Features, qemu: Path) -> None:
    """Check that QEMU has the network cards of a guest, and what they are connected to.

    Raises:
        HostError: it has not.
    """
    if spec.nics and not has.net:
        raise HostError(f"{qemu} has no virtio-net-pci", hint="install a QEMU that has it")
    for nic in spec.nics:
        words = option("net", f"{nic.kind}={nic.name}" if nic.name else nic.kind)
        backend = {"segment": "stream"}.get(nic.kind or "", nic.kind)
        if backend is not None and backend not in has.netdevs:
            raise HostError(
                f"{words}: {qemu} was built without its network backend {backend}",
                hint="install a QEMU with libslirp, as Debian's"
                if backend == "user"
                else "install QEMU 7.2 or newer, as Debian's",
            )
        if nic.kind == "bridge":
            _check_bridge(nic.name, words, Path(has.bridge_helper))


def _check_bridge(name: str, words: str, helper: Path) -> None:
    if not os.access(helper, os.X_OK):
        raise HostError(
            f"{words} needs qemu-bridge-helper, and there is no {helper}",
            hint="install it: apt install qemu-system-common; or use QEMU's user network, which needs none:"
            f" {option('net', 'user')}",
        )
    if not Path(f"/sys/class/net/{name}/bridge").is_dir():
        raise HostError(
            f"{words}: this machine has no bridge {name}",
            hint=f"make it: sudo ip link add {name} type bridge && sudo ip link set {name} up",
        )


def build(spec: LaunchSpec, found: Resources, directory: RunDir, *, initial: InitialState = BOOT) -> Plan:
    """Return the plan for a run directory, which does not have to exist.

    Args:
        spec: What to start.
        found: The host's resources.
        directory: The directory for its sockets and logs.
        initial: The memory and state that it starts with; a runner always boots.
    """
    chosen = found.choice
    match spec.machine:
        case OwnMachine() as machine:
            command = argv.own(
                spec,
                machine,
                qemu=found.qemu,
                arch=found.arch,
                accel=chosen.accel,
                rundir=directory,
                features=found.features,
                disk_format=found.disk_format,
                initial=initial,
                plugin=found.tracing.plugin,
            )
            return Plan(command, {}, chosen.accel, chosen.reason, found.tracing.untraceable)
        case RunnerMachine() as machine:
            command = runner.command(
                spec,
                machine,
                given=runner.options(found.script, inherited=os.environ),
                accel=chosen.accel,
                arch=found.arch,
                rundir=directory,
                features=found.features,
                plugin=found.tracing.plugin,
            )
            env = runner.environment(spec, machine, scratch=directory.scratch, inherited=os.environ)
            return Plan(command, env, chosen.accel, chosen.reason, found.tracing.untraceable)
        case ReplayMachine() as machine:
            command = recorded.replayed(
                machine.argv,
                qemu=found.qemu,
                name=spec.name,
                run=machine.run,
                rundir=directory,
                log=machine.log,
                moved=machine.moved,
                plugin=argv.traces(found.tracing.plugin, directory),
            )
            return Plan(command, {}, chosen.accel, chosen.reason, found.tracing.untraceable)
        case _:
            assert_never(spec.machine)


def _text(script: Path) -> str:
    try:
        return script.read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"cannot read the runner script {script}: {error.strerror}") from error


def _disk_format(machine: OwnMachine | RunnerMachine | ReplayMachine) -> DiskFormat | None:
    """Return the format of `OwnMachine.disk`."""
    if not isinstance(machine, OwnMachine) or machine.disk is None:
        return None
    try:
        with machine.disk.open("rb") as stream:
            return disks.disk_format(stream.read(4))
    except OSError as error:
        raise UsageError(
            f"cannot read the disk {machine.disk}: {error.strerror}",
            hint="make one: qemu-img create -f qcow2 FILE 10G",
        ) from error
