"""A boot of a unified kernel image: the builtin kernel and its initramfs in a PE file."""

from __future__ import annotations

from pathlib import Path

import vmdebug
from tests.unit import kernelfiles
from vmdebug.guest import Kernel

SECONDS = 120.0


def test_its_kernel_initramfs_and_parameters_boot(kernel: Kernel, initrd: Path, tmp_path: Path) -> None:
    whole = tmp_path / "linux.efi"
    parts = {"linux": kernel.image.read_bytes(), "initrd": initrd.read_bytes(), "cmdline": b"quiet of=uki\0"}
    whole.write_bytes(kernelfiles.uki(**parts))
    with vmdebug.start(whole, vmlinux=kernel.vmlinux, accel="tcg", halt=True) as session:
        reached = session.gdb.breakpoint("start_kernel", temporary=True)
        assert session.gdb.cont(timeout=SECONDS).breakpoint == reached
        session.gdb.cont(wait=False)
        assert " of=uki " in session.exec("cat /proc/cmdline", timeout=SECONDS).stdout
