"""The VMs of the user, and the facts that `start` and `status` print about one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmdebug.channel.found import Found
from vmdebug.cli import render
from vmdebug.errors import VmdebugError
from vmdebug.spelling import option

if TYPE_CHECKING:
    from vmdebug.guest import Kernel
    from vmdebug.network import Nic
    from vmdebug.vm import Vm
    from vmdebug.vm.lost import LostVm


PROOFS = {
    "build-id": "match the kernel: build-id {build_id}",
    "banner": "match the kernel: its version and build date",
    "release": "match the kernel by its release alone",
    "none": "it is unknown whether they match the kernel",
}
"""The words for each `kimage.Proof`."""


def every_vm() -> list[Vm | LostVm]:
    """Return all VMs, the lost ones last; print an error for one whose state cannot be read."""
    from vmdebug import vm

    survey = vm.sweep()
    for problem in survey.problems:
        render.error(problem)
    return [*survey.vms, *survey.lost]


def for_people(vm: Vm, facts: dict[str, Any]) -> dict[str, str]:
    """Return the most important facts about a VM, in words.

    Args:
        vm: The VM.
        facts: Its `Vm.facts`.
    """
    spec = vm.state.spec
    release = f"  {spec.kernel.release}" if spec.kernel.release else ""
    found = {
        vm.name: facts["status"],
        "accelerator": f"{facts['accel']}: {facts['accel_reason']}",
        "kernel": f"{short(spec.kernel.image)}{release}\nfrom {spec.kernel.origin}",
        "symbols": symbols(spec.kernel),
        **({"root": spec.root.note} if spec.root is not None else {}),
        **({"network": "\n".join(map(_network, spec.nics))} if spec.nics else {}),
        "parameters": " ".join(spec.parameters),
        "gdb": facts["gdb"],
        "qmp": facts["qmp"],
        "log": facts["console_log"],
    }
    if facts["shell"] is not None:
        found["shell"] = Found(facts["shell"]["way"], facts["shell"]["reason"]).describe()
    return found | ({"note": "\n".join(spec.notes)} if spec.notes else {})


def _network(nic: Nic) -> str:
    """Return in words what a network card is connected to."""
    what = f"{nic.kind} {nic.name}".strip() if nic.kind else "not connected"
    forwards = "".join(
        f", {each.address}:{each.host} → {each.guest}{'/udp' if each.protocol == 'udp' else ''}"
        for each in nic.forwards
    )
    return f"{what}: {nic.address or 'no address'}{forwards}"


def symbols(kernel: Kernel) -> str:
    """Return in words where the symbols are, and how they are known to match the kernel."""
    from vmdebug import kimage

    if kernel.vmlinux is None:
        return f"none: GDB will know addresses only; give them: {option('vmlinux', 'FILE')}"
    try:
        proof = kimage.check(kernel.image, kernel.vmlinux)
    except VmdebugError as error:  # rebuilt or removed since the start
        return f"{short(kernel.vmlinux)}\n{error.message}"
    return f"{short(kernel.vmlinux)}\n{PROOFS[proof].format(build_id=kernel.build_id)}"


def short(path: Path) -> str:
    """Return a path with ~ for the home directory."""
    with contextlib.suppress(RuntimeError, ValueError):  # no home directory; the path is elsewhere
        return f"~/{path.relative_to(Path.home())}"
    return str(path)
