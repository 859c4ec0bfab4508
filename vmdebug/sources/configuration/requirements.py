"""The options that a guest's kernel must have built in; `lacks` says which of them a kernel lacks.

A NixOS guest's initrd has only modules of its own kernel, so another kernel must have built in what the
guest needs to boot. This reads the needs from the runner and the system that it boots; see nixpkgs'
nixos/modules/virtualisation/qemu-vm.nix and nixos/modules/system/activation/top-level.nix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vmdebug import arch
from vmdebug.arch import Arch
from vmdebug.guest import Root, Share
from vmdebug.network import DHCP, Nic
from vmdebug.paths import or_false
from vmdebug.sources.configuration.dotconfig import Configuration

Purpose = Literal[
    "busybox shell",
    "initramfs",
    "root file system",
    "shared directory",
    "network",
    "NixOS VM",
    "systemd",
    "debugging",
    "advice",
]


@dataclass(frozen=True, slots=True)
class Need:
    """An option that has to be y, or off.

    Args:
        option: Its name, without CONFIG_.
        purpose: Who needs it.
        why: What it is for.
        add_fragment: The fragment that sets it.
        module: Its name as a module; "" if it cannot be a module.
        off: Whether it has to be off instead.
    """

    option: str
    purpose: Purpose
    why: str
    add_fragment: str
    module: str = ""
    off: bool = False

    def met(self, configuration: Configuration) -> bool:
        """Whether a configuration meets it."""
        return (configuration.value(self.option) == "y") != self.off


_OWN = (
    Need("BLK_DEV_INITRD", "busybox shell", "the initramfs", "base"),
    Need("BINFMT_ELF", "busybox shell", "programs", "base"),
    Need("PROC_FS", "busybox shell", "/proc", "base"),
    Need("SERIAL_8250_CONSOLE", "busybox shell", "the console", "vm-boot"),
    Need("TTY", "busybox shell", "the console", "base"),
)


def own(row: Arch) -> tuple[Need, ...]:
    """Return the options that vmdebug's busybox shell needs, for an architecture."""
    return (Need("64BIT", "busybox shell", "busybox is a 64-bit program", row.fragment), *_OWN)


_DISK = (
    Need("VIRTIO_BLK", "NixOS VM", "its disk", "nixos-boot", "virtio_blk"),
    Need("VIRTIO_PCI", "NixOS VM", "its devices", "nixos-boot", "virtio_pci"),
)
_EXT4 = Need("EXT4_FS", "NixOS VM", "the root file system", "nixos-boot", "ext4")
_SHARES = (
    Need("9P_FS", "NixOS VM", "the host's store and directories", "nixos-boot", "9p"),
    Need("NET_9P_VIRTIO", "NixOS VM", "the host's store and directories", "nixos-boot", "9pnet_virtio"),
)
_OVERLAY = Need("OVERLAY_FS", "NixOS VM", "a writable store", "nixos-boot", "overlay")
_INITRD = Need("BLK_DEV_INITRD", "NixOS VM", "its initrd", "nixos-boot")

_FILE_SYSTEMS = {
    "ext4": (_EXT4,),
    "9p": _SHARES,
    "overlay": (_OVERLAY,),
    "erofs": (Need("EROFS_FS", "NixOS VM", "a store packed as erofs", "nixos-boot", "erofs"),),
    "tmpfs": (Need("TMPFS", "NixOS VM", "file systems in memory", "nixos-boot"),),
    "btrfs": (Need("BTRFS_FS", "NixOS VM", "a file system in its fstab", "", "btrfs"),),
    "squashfs": (Need("SQUASHFS", "NixOS VM", "a file system in its fstab", "", "squashfs"),),
    "vfat": (Need("VFAT_FS", "NixOS VM", "a file system in its fstab", "", "vfat"),),
    "virtiofs": (Need("VIRTIO_FS", "NixOS VM", "a file system in its fstab", "", "virtiofs"),),
    "xfs": (Need("XFS_FS", "NixOS VM", "a file system in its fstab", "", "xfs"),),
}

_ETC = tuple(
    Need(
        option,
        "NixOS VM",
        "its /etc: system.etc.overlay, as system.nixos-init needs it",
        "nixos-boot",
        module,
    )
    for option, module in (("EROFS_FS", "erofs"), ("OVERLAY_FS", "overlay"), ("BLK_DEV_LOOP", "loop"))
)
"""system.requiredKernelConfig of nixos/modules/system/etc/etc-activation.nix; the initrd mounts it."""

_PACKED = {
    b"\x28\xb5\x2f\xfd": Need("RD_ZSTD", "NixOS VM", "its initrd, packed with zstd", "nixos-boot"),
    b"\x1f\x8b": Need("RD_GZIP", "NixOS VM", "its initrd, packed with gzip", "nixos-boot"),
    b"\xfd7zXZ": Need("RD_XZ", "NixOS VM", "its initrd, packed with xz", ""),
    b"\x02\x21\x4c\x18": Need("RD_LZ4", "NixOS VM", "its initrd, packed with lz4", ""),
}

_UNPACKED = (b"0707", b"\0", b"\x1f\x9e", b"BZh", b"\x5d\x00\x00", b"\x89LZO")
"""How else an initramfs can begin: cpio, zeros before it, old gzip, bzip2, lzma, lzo."""

_DEVICES = (
    Need("VIRTIO_PCI", "root file system", "its devices", "vm-boot", "virtio_pci"),
    Need("DEVTMPFS", "root file system", "device nodes", "base"),
)
_WRITES = (
    Need("OVERLAY_FS", "root file system", "a layer for the guest's writes", "root", "overlay"),
    Need("TMPFS", "root file system", "the memory of that layer", "base"),
    Need("TMPFS_XATTR", "root file system", "that layer marks what is deleted", "root"),
)
_DISKS = (
    Need("VIRTIO_BLK", "root file system", "the disk with the image", "vm-boot", "virtio_blk"),
    Need("MSDOS_PARTITION", "root file system", "partitions", "root"),
    Need("EFI_PARTITION", "root file system", "partitions", "root"),
)
_ROOTS = {
    "9p": (
        Need("9P_FS", "root file system", "the directory of the host", "root", "9p"),
        Need("NET_9P_VIRTIO", "root file system", "the directory of the host", "root", "9pnet_virtio"),
    ),
    "virtiofs": (Need("VIRTIO_FS", "root file system", "the directory of the host", "root", "virtiofs"),),
    "erofs": (Need("EROFS_FS", "root file system", "the file system of the image", "root", "erofs"),),
    "ext4": (Need("EXT4_FS", "root file system", "the file system of the image", "ext4", "ext4"),),
    "squashfs": (Need("SQUASHFS", "root file system", "the file system of the image", "", "squashfs"),),
    "btrfs": (Need("BTRFS_FS", "root file system", "the file system of the image", "", "btrfs"),),
    "xfs": (Need("XFS_FS", "root file system", "the file system of the image", "", "xfs"),),
}


def of_root(root: Root) -> tuple[Need, ...]:
    """Return what a guest with a root file system needs."""
    disk = () if root.share is not None else _DISKS[: 3 if root.partition else 1]
    systemd = tuple(replace(need, add_fragment="root") for need in SYSTEMD) if root.systemd else ()
    return (*_DEVICES, *disk, *_ROOTS.get(root.file_system, ()), *(() if root.keep else _WRITES), *systemd)


def of_shares(shares: Iterable[Share]) -> tuple[Need, ...]:
    """Return what a guest with shared directories needs."""
    found: list[Need] = [_DEVICES[0]]
    for share in shares:
        found += _ROOTS[share.transport]
        found += _WRITES if share.mode == "overlay" else ()
    return tuple(dict.fromkeys(replace(need, purpose="shared directory") for need in found))


def of_network(nics: Iterable[Nic]) -> tuple[Need, ...]:
    """Return what a guest with network cards needs."""
    dhcp = any(nic.address == DHCP for nic in nics)
    return (*_NETWORK, *(_DHCP if dhcp else ()))


_NETWORK = (
    Need("VIRTIO_PCI", "network", "its devices", "vm-boot", "virtio_pci"),
    Need("INET", "network", "IPv4", "net"),
    Need("VIRTIO_NET", "network", "the network card", "net", "virtio_net"),
)
_DHCP = (Need("PACKET", "network", "the DHCP client", "net", "af_packet"),)

SYSTEMD = tuple(
    Need(option, "systemd", "systemd needs it to start", "nixos-boot")
    for option in (
        *("DEVTMPFS", "CGROUPS", "INOTIFY_USER", "SIGNALFD", "TIMERFD", "EPOLL"),
        *("UNIX", "SYSFS", "PROC_FS", "FHANDLE", "BINFMT_ELF", "BINFMT_SCRIPT"),
    )
)
"""The section REQUIREMENTS of systemd's README, and what the scripts of NixOS's first stage need."""

RUNNER = (_EXT4, *_DISK, *_SHARES, _OVERLAY, _INITRD)
"""What the guest of a runner needs with the defaults of qemu-vm.nix."""

NIXOS = (*RUNNER, _PACKED[b"\x28\xb5\x2f\xfd"], *_FILE_SYSTEMS["tmpfs"], *SYSTEMD)

DEBUG = (
    Need("DEBUG_INFO", "debugging", "source lines, types, arguments", "debug"),
    Need("DEBUG_INFO_REDUCED", "debugging", "types, and the kernel's GDB scripts", "debug", off=True),
    Need("DEBUG_INFO_SPLIT", "debugging", "all debugging information in vmlinux", "debug", off=True),
    Need("GDB_SCRIPTS", "advice", "the kernel's lx- commands", "gdb"),
    Need("KALLSYMS", "advice", "the addresses of modules, for their symbols", "debug"),
    Need("FW_CFG_SYSFS", "advice", "notes in memory dumps, for crash and drgn", "vm-boot"),
    Need("PVPANIC_PCI", "advice", "QEMU reports a panic at once", "vm-boot"),
    Need("EROFS_FS", "advice", "the store of a VM with vmdebug.nixosModules.vmdebug", "nixos-boot"),
)


def all_() -> tuple[Need, ...]:
    """Return everything that is checked in a configuration, for a guest of this machine's architecture."""
    return (*own(arch.native()), *NIXOS, *DEBUG)


REQUIRED_PURPOSES: tuple[Purpose, ...] = ("busybox shell", "debugging")
"""The purposes that `kernel check` requires; a NixOS VM is not one of them."""

NIXOS_PURPOSES: tuple[Purpose, ...] = (*REQUIRED_PURPOSES, "NixOS VM", "systemd")


def of_runner(script: Path, text: str | None = None) -> tuple[Need, ...]:
    """Return what the guest of a runner needs.

    Args:
        script: The `run-NAME-vm` script, with `system` beside `bin`.
        text: Its text; None reads it.

    Returns:
        The needs according to its text, fstab and initrd; `RUNNER` if the script does not exist.
    """
    if text is None:
        if not or_false(script.is_file):
            return RUNNER
        text = script.read_text(errors="replace")
    return tuple(dict.fromkeys(_needs_in(text, script.parent.parent / "system")))


def _needs_in(text: str, system: Path) -> Iterator[Need]:
    yield _INITRD
    if "virtio-blk" in text or "if=virtio" in text:
        yield from _DISK
    if "mkfs.ext4" in text:
        yield _EXT4
    if "-virtfs " in text:
        yield from _SHARES
    if "mkfs.erofs" in text:
        yield from _FILE_SYSTEMS["erofs"]
    fstab = system / "etc/fstab"
    if or_false(fstab.is_file):
        kinds = re.findall(r"^[^#\s]\S*\s+\S+\s+(\S+)", fstab.read_text(errors="replace"), re.MULTILINE)
        for kind in kinds:
            yield from _FILE_SYSTEMS.get(kind, ())
    if _overlays_etc(system):
        yield from _ETC
    if or_false((system / "systemd").exists):
        yield from SYSTEMD
    yield from _unpacking(system / "initrd")


def _overlays_etc(system: Path) -> bool:
    """Return whether the initrd mounts an image as /etc.

    The toplevel has a link to the image; that of newer releases names it in boot.json.
    """
    boot = system / "boot.json"
    if or_false((system / "etc-metadata-image").exists):
        return True
    return or_false(boot.is_file) and '"etc_metadata_image"' in boot.read_text(errors="replace")


def _unpacking(initrd: Path) -> Iterator[Need]:
    if or_false(initrd.is_file):
        with initrd.open("rb") as file:
            start = file.read(8)
        yield from (need for magic, need in _PACKED.items() if start.startswith(magic))


def is_initramfs(file: Path) -> bool:
    """Return whether a file begins as an initramfs: a cpio archive, or one packed in a way that Linux knows.

    See init/initramfs.c, which skips zeros, and lib/decompress.c of Linux.
    """
    with file.open("rb") as stream:
        return stream.read(8).startswith((*_PACKED, *_UNPACKED))


def of_initrd(initrd: Path) -> tuple[Need, ...]:
    """Return what a kernel needs to unpack an initramfs."""
    needs = (Need("BLK_DEV_INITRD", "initramfs", "an initramfs", "base"), *_unpacking(initrd))
    return tuple(replace(need, purpose="initramfs", why=f"the initramfs {initrd}") for need in needs)
