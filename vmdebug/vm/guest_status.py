"""What a VM is doing, in one word: from QEMU's run state and the kernel's log."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any, Literal

from vmdebug.channel.found import Found
from vmdebug.channel.log import death
from vmdebug.network import Nic
from vmdebug.vm.rundir import RunDir
from vmdebug.vm.state import State

Status = Literal["halted", "running", "paused", "panicked", "failed", "exited"]
"""halted: stopped at the reset vector. paused: stopped elsewhere, by GDB or QEMU. failed: QEMU cannot
continue the guest, for example because KVM has failed. exited: QEMU has ended."""

_RUN_STATES: dict[str, Status] = {
    "prelaunch": "halted",
    "running": "running",
    "guest-panicked": "panicked",
    "internal-error": "failed",
    "shutdown": "exited",
}
"""The status for QEMU's `RunState`; every other one is "paused"."""

_HOW_TO_RUN = {
    "halted": "set it running: vmdebug attach {name} --batch; in a script: session.gdb.cont(wait=False)",
    "paused": "continue or quit the GDB that is attached; if none is: vmdebug attach {name} --batch",
}

_DEATHS: dict[str, str] = {
    "panicked": "the kernel panicked",
    "failed": "QEMU cannot continue it: its state is internal-error",
    "exited": "QEMU has ended",
}


def of_run_state(run_state: str, console_log: Path) -> Status:
    """Return the status of a VM whose QEMU answers.

    Args:
        run_state: The field `status` of QMP's `query-status`.
        console_log: The log of the guest's serial line.
    """
    status = _RUN_STATES.get(run_state, "paused")
    # A kernel without a pvpanic driver reports its panic only on the console, and then loops. With a
    # driver, GDB may have stopped the guest before the driver was called.
    in_log = status in ("running", "paused") and death.panicked(console_log)
    return "panicked" if in_log else status


def after_end(console_log: Path) -> Status:
    """Return the status of a VM whose QEMU has ended."""
    return "panicked" if death.panicked(console_log) else "exited"


def how_to_run(status: Status, name: str) -> str:
    """Return the command that sets a guest with this status running, for a hint."""
    return _HOW_TO_RUN.get(status, "start it again: vmdebug restart {name}").format(name=name)


def cause_of_death(status: Status) -> str:
    """Return how a guest with this status died; "" if it lives."""
    return _DEATHS.get(status, "")


def end_of_qemu(state: State, status: int | None, qemu_log: Path) -> str:
    """Return how QEMU ended, with the last line that it wrote.

    Args:
        state: The VM.
        status: Its exit status, negative for a signal; None if it is unknown, because another process started
            it.
        qemu_log: Its output.
    """
    how = _DEATHS["exited"]
    if status is not None:
        how = f"QEMU has exited with status {status}" if status >= 0 else f"QEMU {killed(state, -status)}"
    with contextlib.suppress(OSError):  # removed with its run directory
        lines = qemu_log.read_text(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "")
        return f"{how}; it wrote: {said}" if said else how
    return how


def killed(state: State, number: int) -> str:
    """Return by which signal QEMU was killed, and what to do if that is a known fault of QEMU."""
    from vmdebug.vm import qemu_faults  # noqa: PLC0415 - only imported for errors

    words = f"was killed by {signal.Signals(number).name}"
    fault = qemu_faults.known(state, number)
    return f"{words}; {fault}" if fault else words


def facts(state: State, rundir: RunDir, status: Status) -> dict[str, Any]:
    """Return the object of `vmdebug status --json`."""
    spec = state.spec
    kernel = spec.kernel
    found = Found.read(rundir.ways.memory)
    return {
        "name": state.name,
        "status": status,
        "pid": state.pid,
        "accel": state.accel,
        "accel_reason": state.reason,
        "guest": spec.guest,
        "kernel": str(kernel.image),
        "release": kernel.release,
        "vmlinux": None if kernel.vmlinux is None else str(kernel.vmlinux),
        "build_id": kernel.build_id,
        "gdb": state.gdb,
        "qmp": str(rundir.qmp),
        "console": str(rundir.console),
        "console_log": str(rundir.console_log),
        "run_directory": str(rundir.path),
        "owner": None if state.owner is None else state.owner.pid,
        "started_at": state.started_at,
        "clone_of": state.clone_of or None,
        "net": [_net(nic) for nic in spec.nics],
        "shell": None if found is None else {"way": found.kind, "reason": found.reason},
    }


def _net(nic: Nic) -> dict[str, Any]:
    forwards = [
        {"protocol": each.protocol, "address": each.address, "host": each.host, "guest": each.guest}
        for each in nic.forwards
    ]
    facts = {"kind": nic.kind, "name": nic.name or None, "mac": nic.mac or None}
    return {**facts, "address": nic.address or None, "forwards": forwards}
