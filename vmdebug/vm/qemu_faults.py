"""Known faults of QEMU that kill it, so that an error can say what to do."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
from pathlib import Path

from vmdebug.guest import RunnerMachine
from vmdebug.spelling import option
from vmdebug.vm import qemuargs, runner
from vmdebug.vm.state import State

_REMOVED = b"\0cpu_reloading_memory_map\0"
"""A function that QEMU exports and that the mend has removed: commit 0d58c660689f, "softmmu: Use
async_run_on_cpu in tcg_commit", in 8.1.2 and 8.2. Before, one CPU could use the new map of memory with the
old contents of its TLB; see issues 1826, 1834 and 1846 of QEMU's GitLab."""


def known(state: State, number: int) -> str:
    """Return the known fault by which a signal may have killed a VM's QEMU, and what to do; "" if none.

    Args:
        state: The VM.
        number: The signal.
    """
    if number != signal.SIGSEGV or state.accel != "tcg":
        return ""
    qemu, given = _command(state)
    if _cpus(given) < 2 or qemu is None or not crashes_with_cpus(qemu):  # noqa: PLR2004 - more than one
        return ""
    return (
        "with several CPUs under TCG, this QEMU can crash while the guest maps PCI devices:"
        f" start it with {option('cpus', 1)}, or use QEMU 8.1.2 or newer"
    )


def _command(state: State) -> tuple[Path | None, qemuargs.Options]:
    """Return the program and the options of a VM's QEMU; no program if it is not known."""
    given = qemuargs.parse(state.argv[1:])
    machine = state.spec.machine
    if not isinstance(machine, RunnerMachine):
        found = shutil.which(state.argv[0])
        return None if found is None else Path(found), given
    with contextlib.suppress(OSError):
        script = machine.script.read_text(errors="replace")
        return runner.qemu(script), runner.options(script, inherited=os.environ) + given
    return None, given


def _cpus(given: qemuargs.Options) -> int:
    last = given.values("cpus", "smp")[-1:]
    return int(last[0]) if last and last[0].isdecimal() else 1


def crashes_with_cpus(qemu: Path) -> bool:
    """Return whether a QEMU can crash under TCG with several CPUs while a guest maps its devices."""
    with (
        contextlib.suppress(OSError, ValueError),  # ValueError: the file is empty
        qemu.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents,
    ):
        return contents.find(_REMOVED) >= 0
    return False
