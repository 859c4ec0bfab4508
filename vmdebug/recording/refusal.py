"""What cannot be recorded: refused by name before anything is started."""

from __future__ import annotations

from collections.abc import Iterator

from vmdebug.errors import UsageError
from vmdebug.guest import LaunchSpec, OwnMachine
from vmdebug.spelling import option

_OTHER = "a replay would find other contents"


def check(spec: LaunchSpec) -> None:
    """Check that a guest can be recorded exactly.

    Raises:
        UsageError: it cannot; the message names what prevents it.
    """
    if spec.record is None:
        return
    for message, hint in (*_machine(spec), *_disks(spec), *_devices(spec)):
        raise UsageError(message, hint=hint)


def _without(name: str, value: str | int | None = None) -> str:
    return f"leave out {option(name, value)}, or {option('record')}"


def _machine(spec: LaunchSpec) -> Iterator[tuple[str, str]]:
    record = option("record")
    if not isinstance(spec.machine, OwnMachine):
        yield (
            f"{record}: the runner script of {spec.guest} has a 9p share, which cannot be recorded",
            "record a tree, an image or `builtin`",
        )
        return
    if spec.accel == "kvm":
        yield (
            f"{record} needs TCG, which counts instructions; KVM does not",
            _without("accel", "kvm"),
        )
    if (spec.cpus or 1) > 1:
        yield (
            f"{record} records one CPU, and the guest would have {spec.cpus}",
            _without("cpus", spec.cpus),
        )
    if spec.machine.firmware is not None:
        yield (f"{record}: a guest with a firmware of its own cannot be recorded", _without("firmware"))


def _disks(spec: LaunchSpec) -> Iterator[tuple[str, str]]:
    record = option("record")
    for share in spec.shared:
        yield (
            f"{record}: {share.directory} is shared over {share.transport}, which cannot be recorded",
            _without("root")
            if share.mount_point == "/"
            else f"copy files with `vmdebug cp`; {_without('share')}",
        )
    if spec.root is not None and not spec.root.keep:
        yield (
            f"{record}: the root file system is on a disk, whose requests a replay does not repeat in time",
            f"{_without('root')}; copy files with `vmdebug cp`",
        )
    if isinstance(spec.machine, OwnMachine) and spec.machine.disk is not None:
        yield (
            f"{record}: the guest writes to {spec.machine.disk}, so {_OTHER}",
            _without("disk"),
        )
    if spec.root is not None and spec.root.keep:
        yield (f"{record} with {option('keep')}: {_OTHER}", _without("keep"))


def _devices(spec: LaunchSpec) -> Iterator[tuple[str, str]]:
    record = option("record")
    for nic in spec.nics:
        if nic.kind is not None:
            yield (f"{record}: the network {nic.kind} cannot be recorded", _without("net"))
    if spec.qemu_args:
        yield (
            f"{record}: devices of your own cannot be recorded: {' '.join(spec.qemu_args)}",
            f"leave out the arguments for QEMU, or {record}",
        )
