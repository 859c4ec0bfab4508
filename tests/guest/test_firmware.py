"""A boot through UEFI: real OVMF, which gets the builtin kernel from QEMU."""

from __future__ import annotations

import pytest

import vmdebug

SECONDS = 120.0


@pytest.mark.parametrize("kaslr", [False, True])
def test_a_breakpoint_that_is_set_before_the_firmware_runs(kaslr: bool) -> None:
    options = vmdebug.StartOptions(firmware="uefi", kaslr=kaslr, halt=True, accel="tcg")
    with vmdebug.start("builtin", **options) as session:
        gdb = session.gdb
        assert gdb.frame().pc == 0xFFF0
        early = gdb.breakpoint("start_kernel")
        stop = gdb.cont(timeout=SECONDS)
        assert (stop.breakpoint, stop.frame.function, early.hits) == (early, "start_kernel", 1)
        assert gdb.identity is not None
        assert gdb.identity.state == "proven"
        early.delete()
        gdb.cont(wait=False)
        assert session.exec("dmesg | grep -c EFI", timeout=SECONDS).status == 1, "this kernel has no EFI stub"
