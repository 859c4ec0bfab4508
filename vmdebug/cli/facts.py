"""What people are told about a VM, by `start` and by `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmdebug.guest import Kernel
    from vmdebug.vm import Vm


def for_people(vm: Vm, facts: dict[str, Any]) -> dict[str, str]:
    """Return a VM's facts in words, the few that one looks for.

    Args:
        vm: The VM.
        facts: Its `Vm.facts`.
    """
    spec = vm.state.spec
    release = f"  {spec.kernel.release}" if spec.kernel.release else ""
    found = {
        vm.name: facts["status"],
        "accelerator": f"{facts['accel']}: {facts['accel_reason']}",
        "kernel": f"{spec.kernel.image}{release}\nfrom {spec.kernel.origin}",
        "symbols": symbols(spec.kernel),
        "parameters": " ".join(spec.parameters),
        "gdb": facts["gdb"],
        "qmp": facts["qmp"],
        "log": facts["console_log"],
    }
    return found | ({"note": "\n".join(spec.notes)} if spec.notes else {})


def symbols(kernel: Kernel) -> str:
    """Return in words where the symbols are, and what proves that they belong to the kernel."""
    if kernel.vmlinux is None:
        return "none: GDB will know addresses only; --vmlinux F names them"
    if not kernel.build_id:
        return f"{kernel.vmlinux}\nno build-id to compare"
    return f"{kernel.vmlinux}\nmatch the kernel: build-id {kernel.build_id}"
