"""QEMU's options for disks: the user's, that of the root file system, that of the modules; pure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vmdebug.guest import ROOT_TAG, OwnMachine, Root
from vmdebug.vm.qemuargs import value

DiskFormat = Literal["qcow2", "raw"]

MODULES = "vmdebug-modules"
"""Serial number of the disk with the modules; sources/modules.sh looks for it."""

_QCOW2_MAGIC = b"QFI\xfb"


def own(machine: OwnMachine, disk_format: DiskFormat | None) -> tuple[str, ...]:
    """Attach the user's disk image, if there is one."""
    if machine.disk is None or disk_format is None:
        return ()
    return (throwaway if machine.throwaway else disk)(machine.disk, disk_format)


def disk(path: Path, disk_format: DiskFormat) -> tuple[str, ...]:
    """Attach a disk image as the first virtio block device; the guest writes to it."""
    return (
        "-blockdev",
        f"driver=file,node-name=file0,filename={value(path)}",
        "-blockdev",
        f"driver={disk_format},node-name=disk0,file=file0",
        "-device",
        "virtio-blk-pci,drive=disk0",
    )


def throwaway(path: Path, disk_format: DiskFormat) -> tuple[str, ...]:
    """Attach a disk image read-only: the guest's writes go into an unnamed file in $TMPDIR.

    See `snapshot` of `-drive` in QEMU's manual; `-blockdev` has no such option.
    """
    return (
        "-drive",
        f"if=none,id=disk0,format={disk_format},snapshot=on,file={value(path)}",
        "-device",
        "virtio-blk-pci,drive=disk0",
    )


def disk_format(head: bytes) -> DiskFormat:
    """Return a disk image's format, according to its first bytes.

    Do not let QEMU guess it: a guest could then write a qcow2 header to a raw disk.
    """
    return "qcow2" if head.startswith(_QCOW2_MAGIC) else "raw"


def root(of: Root | None) -> tuple[str, ...]:
    """Attach a root file system under the name by which vmdebug's init finds it.

    The image is read-only for QEMU, unless the user wants to keep the guest's writes. A directory is one of
    `LaunchSpec.shared`.
    """
    if of is None or of.share is not None:
        return ()
    only = "" if of.keep else ",read-only=on"
    return (
        "-blockdev",
        f"driver=file,node-name=rootfile0,filename={value(of.location)}{only}",
        "-blockdev",
        f"driver={of.format},node-name=root0,file=rootfile0{only}",
        "-device",
        f"virtio-blk-pci,drive=root0,serial={ROOT_TAG}",
    )


def modules(image: Path | None) -> tuple[str, ...]:
    """Attach the read-only image of the guest's modules under the name by which vmdebug's init finds it."""
    if image is None:
        return ()
    return (
        "-blockdev",
        f"driver=file,node-name=modulesfile0,filename={value(image)},read-only=on",
        "-blockdev",
        "driver=raw,node-name=modules0,file=modulesfile0,read-only=on",
        "-device",
        f"virtio-blk-pci,drive=modules0,serial={MODULES}",
    )
