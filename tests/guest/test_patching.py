"""Breakpoints where the kernel rewrites its own code. GDB is told that the guest runs under KVM."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.fixtures.accel import SECONDS
from vmdebug import vm
from vmdebug.guest import LaunchSpec
from vmdebug.session import DebugSession

JUMP_LABEL = "sched_clock"
"""It begins with a jump label, which the kernel rewrites when it knows the CPU's clock. printk calls it."""

ALTERNATIVE = "copy_page"
"""It begins with an alternative, and fork(2) calls it."""


@pytest.fixture
def halted(builtin: LaunchSpec) -> Iterator[DebugSession]:
    with vm.launch(msgspec.structs.replace(builtin, halt=True), bound=True, timeout=SECONDS) as machine:
        told = vm.Vm(machine.rundir, msgspec.structs.replace(machine.state, accel="kvm"))
        with DebugSession(told, owned=False) as session:
            yield session


def test_what_the_kernel_rewrites_has_hardware_breakpoints(halted: DebugSession) -> None:
    gdb = halted.gdb
    label = gdb.breakpoint(JUMP_LABEL, when="0")
    copied = gdb.breakpoint(ALTERNATIVE)
    gdb.breakpoint("rest_init", temporary=True)
    kinds = [line.split()[1] for line in gdb.console("info breakpoints").splitlines() if " keep y " in line]
    assert kinds == ["hw", "hw"]
    assert gdb.cont(timeout=SECONDS).frame.function == "rest_init"
    assert gdb.evaluate("__use_tsc.key.enabled.counter") == 1, "the kernel has rewritten the jump label"
    label.delete()
    assert gdb.cont(timeout=SECONDS).breakpoint == copied
    copied.delete()
    # The kernel has applied the alternatives, and does not rewrite them again.
    with gdb.breakpoint(ALTERNATIVE):
        assert "breakpoint     keep y" in gdb.console("info breakpoints").replace("hw breakpoint", "hw")
    gdb.cont(wait=False)
    assert "BUG" not in halted.exec("dmesg", timeout=SECONDS, check=True).stdout


def test_a_trace_of_what_the_kernel_rewrites(halted: DebugSession) -> None:
    gdb = halted.gdb
    gdb.breakpoint("start_kernel", temporary=True)
    gdb.cont(timeout=SECONDS)
    gdb.cont(wait=False)
    with gdb.trace(ALTERNATIVE, count=1) as hits:
        assert halted.exec("true", timeout=SECONDS).status == 0
    assert len(hits) == 1
