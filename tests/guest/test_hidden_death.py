"""Guests that die without QEMU or the console telling: whoever waits for them notices all the same."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug.errors import GuestDiedError, StateError
from vmdebug.guest import LaunchSpec
from vmdebug.vm import Vm, hidden_death, launch

SILENT = ("-global", "pvpanic-pci.events=0")
CRASH = "echo c >/proc/sysrq-trigger"
NEVER = 1000.0


@pytest.fixture
def hidden(builtin: LaunchSpec) -> LaunchSpec:
    """A guest whose kernel prints nothing on the console, and has no driver for the panic device."""
    kept = [word for word in builtin.parameters if not word.startswith("console=")]
    parameters = ("console=ttyS2", *kept)
    return msgspec.structs.replace(builtin, name="hidden", parameters=parameters, qemu_args=SILENT)


@pytest.fixture
def vm(hidden: LaunchSpec) -> Iterator[Vm]:
    with launch(hidden, bound=True, timeout=SECONDS) as started:
        # Before the kernel is there, as a client asks whose command waits for the boot.
        assert hidden_death.cause(started) == ""
        started.exec("true", timeout=SECONDS)
        yield started


def test_a_guest_that_lives_is_not_taken_for_dead(vm: Vm) -> None:
    assert hidden_death.cause(vm) == ""
    assert vm.exec("sleep 3; echo done", timeout=SECONDS).stdout == "done\n"


def test_exec_notices_a_panic_that_nothing_shows_but_the_kernel_s_memory(vm: Vm) -> None:
    with pytest.raises(GuestDiedError, match="Kernel panic - not syncing: sysrq triggered crash") as caught:
        vm.exec(CRASH, timeout=NEVER)
    assert "vmdebug dmesg hidden" in caught.value.hint
    assert vm.qmp("query-status")["status"] == "running"
    with pytest.raises(GuestDiedError, match="Kernel panic"):
        vm.exec("true", timeout=NEVER)
    with pytest.raises(StateError, match="has died: Kernel panic"):
        vm.check_alive("trace")


def test_exec_notices_that_every_cpu_has_halted_without_symbols(hidden: LaunchSpec) -> None:
    kernel = msgspec.structs.replace(hidden.kernel, vmlinux=None)
    spec = msgspec.structs.replace(hidden, kernel=kernel, cpus=2)
    with launch(spec, bound=True, timeout=SECONDS) as vm:
        assert vm.exec("nproc", timeout=SECONDS).stdout == "2\n"
        assert hidden_death.cause(vm) == ""
        with pytest.raises(GuestDiedError, match="all of its CPUs have halted with interrupts disabled"):
            vm.exec("halt -f", timeout=NEVER)
