"""Boots of a unified kernel image: of its parts, the builtin kernel and its initramfs, and of the whole file.

The whole file boots through OVMF by systemd-stub and the kernel's EFI stub.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import vmdebug
from tests.fixtures import repacked
from tests.unit import kernelfiles
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel

SECONDS = 120.0

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
"""systemd-stub, of Debian's package systemd-boot-efi."""


def test_its_kernel_initramfs_and_parameters_boot(kernel: Kernel, initrd: Path, tmp_path: Path) -> None:
    whole = tmp_path / "linux.efi"
    parts = {"linux": kernel.image.read_bytes(), "initrd": initrd.read_bytes(), "cmdline": b"quiet of=uki\0"}
    whole.write_bytes(kernelfiles.uki(**parts))
    with vmdebug.start(whole, vmlinux=kernel.vmlinux, accel="tcg", halt=True) as session:
        reached = session.gdb.breakpoint("start_kernel", temporary=True)
        assert session.gdb.cont(timeout=SECONDS).breakpoint == reached
        session.gdb.cont(wait=False)
        assert " of=uki " in session.exec("cat /proc/cmdline", timeout=SECONDS).stdout


@pytest.fixture(scope="module")
def whole(initrd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unified kernel image as ukify(1) makes it, of the builtin kernel with an EFI stub."""
    directory = tmp_path_factory.mktemp("unified")
    (directory / "cmdline").write_text("of=uki\n")
    sections = {
        "cmdline": (directory / "cmdline", 0x30000),
        "linux": (repacked.image(directory / "tree", repacked.EFI_STUB), 0x2000000),
        "initrd": (initrd, 0x3000000),
    }
    words: list[str | Path] = []
    for name, (file, address) in sections.items():
        words += ["--add-section", f".{name}={file}", "--change-section-vma", f".{name}={address:#x}"]
    made = directory / "linux.efi"
    process.run(["objcopy", *words, STUB, made], deadline=Deadline.after(SECONDS))
    return made


@pytest.mark.parametrize("kaslr", [False, True])
def test_the_whole_image_boots_by_its_own_stub(kernel: Kernel, whole: Path, kaslr: bool) -> None:
    options = vmdebug.StartOptions(firmware="uefi", kaslr=kaslr, append="more=1", halt=True, accel="tcg")
    options["vmlinux"] = kernel.vmlinux
    with vmdebug.start(whole, **options) as session:
        assert f"{whole} is a unified kernel image: UEFI starts it as it is" in session.vm.state.spec.notes[0]
        gdb = session.gdb
        assert gdb.frame().pc == 0xFFF0
        early = gdb.breakpoint("start_kernel", temporary=True)
        stop = gdb.cont(timeout=SECONDS)
        assert (stop.breakpoint, stop.frame.function) == (early, "start_kernel")
        assert gdb.identity is not None
        assert gdb.identity.state == "proven"
        gdb.cont(wait=False)
        words = session.exec("cat /proc/cmdline", timeout=SECONDS).stdout.split()
        assert {"of=uki", "more=1"} <= set(words)
        # The kernel's stub got the initramfs from systemd-stub, not from QEMU.
        assert b"EFI stub: Loaded initrd from" in session.vm.rundir.console_log.read_bytes()
