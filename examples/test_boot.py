"""The guest boots, and what boots is the kernel that was built.

    pytest examples/test_boot.py
    pytest examples/test_boot.py --vmdebug-kernel ~/src/linux     # yours

`vm` is a fresh guest at its shell, for this test only. It starts no GDB.
"""

from __future__ import annotations

import pytest

from vmdebug import DebugSession
from vmdebug.vm import Vm


def test_it_boots_to_a_shell(vm: Vm) -> None:
    assert vm.exec("uname -s").stdout == "Linux\n"


def test_it_is_the_kernel_that_was_built(vm: Vm) -> None:
    assert vm.exec("uname -r", check=True).stdout.strip() == vm.state.spec.kernel.release


# `halted_session` is stopped at the reset vector: breakpoints can be set before the kernel runs.
def test_init_is_started_by_the_first_kernel_thread(halted_session: DebugSession) -> None:
    gdb = halted_session.gdb
    gdb.breakpoint("run_init_process")
    stop = gdb.cont(timeout=120)

    assert stop.frame.arg("init_filename").string_() == "/init"
    assert "kernel_init" in [frame.function for frame in stop.backtrace()]


# A WARN fails a test, as do BUG, oops, panic, lockdep and the sanitizers' reports, unless the test allows it.
@pytest.mark.vmdebug(allow=["warn"])
def test_a_warning_taints_the_kernel(vm: Vm) -> None:
    warn = "modprobe lkdtm && echo WARNING > /sys/kernel/debug/provoke-crash/DIRECT"
    vm.exec(warn, check=True)
    taint = int(vm.exec("cat /proc/sys/kernel/tainted").stdout)
    assert taint & 1 << 9  # TAINT_WARN, Documentation/admin-guide/tainted-kernels.rst
