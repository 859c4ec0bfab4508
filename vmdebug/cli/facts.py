"""What is said about a VM, by `start` and by `status`: one set of facts for machines, one for people."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmdebug.vm import Vm


def of(vm: Vm, status: str) -> dict[str, Any]:
    """Return a VM's facts under the names that `status --json` promises.

    Args:
        vm: The VM.
        status: What it does now.
    """
    state, spec, kernel = vm.state, vm.state.spec, vm.state.spec.kernel
    return {
        "name": vm.name,
        "status": status,
        "pid": state.pid,
        "accel": state.accel,
        "accel_reason": state.reason,
        "guest": spec.guest,
        "kernel": kernel.image,
        "release": kernel.release,
        "origin": kernel.origin,
        "vmlinux": kernel.vmlinux,
        "build_id": kernel.build_id,
        "modules": kernel.modules,
        "gdb_scripts": kernel.gdb_scripts,
        "parameters": list(spec.parameters),
        "gdb": state.gdb,
        "qmp": vm.rundir.qmp,
        "console": vm.rundir.console,
        "console_log": vm.rundir.console_log,
        "run_directory": vm.rundir.path,
        "started": _time(state.started_at),
        "notes": list(spec.notes),
    }


def for_people(facts: dict[str, Any]) -> dict[str, str]:
    """Return the facts in words, the few that one looks for."""
    kernel = " ".join(filter(None, (str(facts["kernel"]), facts["release"] and f"({facts['release']})")))
    return {
        facts["name"]: facts["status"],
        "accel": f"{facts['accel']}: {facts['accel_reason']}",
        "kernel": f"{kernel}\nfrom {facts['origin']}",
        "symbols": symbols(facts),
        "parameters": " ".join(facts["parameters"]),
        "gdb": str(facts["gdb"]),
        "qmp": str(facts["qmp"]),
        "log": str(facts["console_log"]),
        **({"note": "\n".join(facts["notes"])} if facts["notes"] else {}),
    }


def symbols(facts: dict[str, Any]) -> str:
    """Return in words where the symbols are and what proves that they belong to the kernel."""
    if facts["vmlinux"] is None:
        return "none: GDB will know addresses only; --vmlinux F names them"
    proof = (
        f"build-id {facts['build_id']}, the same in both" if facts["build_id"] else "no build-id to compare"
    )
    return f"{facts['vmlinux']}\n{proof}"


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")
