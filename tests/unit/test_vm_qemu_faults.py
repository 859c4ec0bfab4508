"""A QEMU that was killed by a fault of its own: the error says what to do."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from tests.unit.test_vm_state import some_state
from vmdebug.guest import OwnMachine, RunnerMachine
from vmdebug.vm import guest_status, qemu_faults
from vmdebug.vm.state import State

OLD = b"\x7fELF\0cpu_ld\0cpu_reloading_memory_map\0cpu_reset\0"
NEW = b"\x7fELF\0cpu_ld\0cpu_reset\0"


def started(
    tmp_path: Path, *words: str, qemu: bytes = OLD, accel: Literal["kvm", "tcg"] = "tcg", script: str = ""
) -> State:
    """Return the state of a VM with this QEMU."""
    program = tmp_path / "qemu-system-x86_64"
    program.write_bytes(qemu)
    program.chmod(0o755)
    if not script:
        state = some_state(OwnMachine(initrd=Path("/i")))
        return msgspec.structs.replace(state, argv=(str(program), *words), accel=accel)
    runner = tmp_path / "run-vm-vm"
    runner.write_text(script.format(program))
    state = some_state(RunnerMachine(script=runner, system_name="vm"))
    return msgspec.structs.replace(state, argv=(str(runner), *words), accel=accel)


def test_what_to_do_after_a_crash_with_several_cpus_under_tcg(tmp_path: Path) -> None:
    state = started(tmp_path, "-nodefaults", "-smp", "2,sockets=2")
    assert guest_status.killed(state, signal.SIGSEGV) == (
        "was killed by SIGSEGV; with several CPUs under TCG, this QEMU can crash while the guest maps PCI"
        " devices: start it with cpus=1, or use QEMU 8.1.2 or newer"
    )


def test_a_runner_whose_script_gives_the_cpus(tmp_path: Path) -> None:
    script = 'exec {} -m 512 \\\n  -smp 4 \\\n  $QEMU_OPTS "$@"\n'
    assert qemu_faults.known(started(tmp_path, script=script), signal.SIGSEGV)
    # vmdebug's own comes later.
    assert not qemu_faults.known(started(tmp_path, "-smp", "1", script=script), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("words", "qemu", "accel", "number"),
    [
        (("-smp", "1"), OLD, "tcg", signal.SIGSEGV),
        ((), OLD, "tcg", signal.SIGSEGV),
        (("-smp", "2"), NEW, "tcg", signal.SIGSEGV),
        (("-smp", "2"), b"", "tcg", signal.SIGSEGV),
        (("-smp", "2"), OLD, "kvm", signal.SIGSEGV),
        (("-smp", "2"), OLD, "tcg", signal.SIGKILL),
    ],
    ids=["one CPU", "QEMU's default", "a newer QEMU", "an empty file", "KVM", "SIGKILL"],
)
def test_no_advice_where_the_fault_is_another(
    tmp_path: Path, words: tuple[str, ...], qemu: bytes, accel: Literal["kvm", "tcg"], number: int
) -> None:
    state = started(tmp_path, *words, qemu=qemu, accel=accel)
    assert guest_status.killed(state, number) == f"was killed by {signal.Signals(number).name}"


def test_a_qemu_that_is_gone(tmp_path: Path) -> None:
    state = started(tmp_path, "-smp", "2")
    (tmp_path / "qemu-system-x86_64").unlink()
    assert not qemu_faults.known(state, signal.SIGSEGV)
