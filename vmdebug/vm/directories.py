"""QEMU's options for directories of this machine that the guest gets; pure."""

from __future__ import annotations

from collections.abc import Sequence

from vmdebug.guest import Share
from vmdebug.vm.qemuargs import value
from vmdebug.vm.rundir import RunDir


def served(share: Share) -> bool:
    """Whether virtiofsd serves a directory; otherwise QEMU itself does."""
    return share.transport == "virtiofs"


def shared(shares: Sequence[Share], rundir: RunDir) -> tuple[str, ...]:
    """Give the guest directories of this machine, over virtiofs or 9p."""
    words: list[str] = []
    for number, share in enumerate(shares):
        if served(share):
            words += ["-chardev", f"socket,id=fs{number},path={value(rundir.file_server(number))}"]
            words += ["-device", f"vhost-user-fs-pci,chardev=fs{number},tag={share.tag}"]
        else:
            words += p9(share, f"fs{number}")
    return tuple(words)


def p9(share: Share, name: str) -> tuple[str, ...]:
    """Give the guest a directory over 9p."""
    only = ",readonly=on" if share.read_only else ""
    local = f"local,id={name},path={value(share.directory)},security_model=none,multidevs=remap{only}"
    return ("-fsdev", local, "-device", f"virtio-9p-pci,fsdev={name},mount_tag={share.tag}")
