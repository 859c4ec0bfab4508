"""The features of a QEMU, from its help output, cached until the binary changes.

Do not compare versions: distributions add and remove devices.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.filecache import cached

PROBE_SECONDS = 20.0
"""How long QEMU may take to list its devices; 0.03 s is usual."""


_UARTS = {"isa-serial", "pci-serial"}


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """The features of a QEMU. The defaults are the minimum, for a QEMU that cannot be run.

    Args:
        version: Its version; "" if unknown.
        pvpanic: The name of its pvpanic device, with which a guest reports a panic; or "".
        vmcoreinfo: Whether it has vmcoreinfo, with which a guest describes its memory for dumps.
        rng: Whether it has virtio-rng-pci.
        actions: Whether it has `-action panic=…`.
        vmgenid: Whether it has vmgenid, which notifies a guest that it is a clone.
        virtio_serial: Whether it has virtio-serial ports on a PCI bus.
        uarts: Its devices that are UARTs.
        plugins: Whether it loads plugins into its translator.
        netdevs: Its network backends: "user", "stream", "bridge".
        net: Whether it has virtio-net on a PCI bus.
        bridge_helper: The program with which it joins a bridge; "" if it has none.
    """

    version: str = ""
    pvpanic: str = ""
    vmcoreinfo: bool = False
    rng: bool = False
    actions: bool = False
    vmgenid: bool = False
    virtio_serial: bool = False
    uarts: tuple[str, ...] = ()
    plugins: bool = False
    netdevs: tuple[str, ...] = ()
    net: bool = False
    bridge_helper: str = ""


def parse(options: str, devices: str) -> Features:
    """Return the features that QEMU's help lists.

    Args:
        options: What `-help` prints.
        devices: What `-device help` prints.
    """
    known = set(re.findall(r'^name "([^"]+)"', devices, re.MULTILINE))
    version = re.search(r"version (\S+)", options)
    # A kernel finds the PCI device without ACPI tables; QEMU < 6.0 has only the ISA device.
    panic = next((name for name in ("pvpanic-pci", "pvpanic") if name in known), "")
    helper = re.search(
        r"^-netdev bridge.*\n(?:\s.*\n)*?.*program 'helper ?\(default=([^)']+)\)", options, re.MULTILINE
    )
    return Features(
        version=version[1] if version else "",
        pvpanic=panic,
        vmcoreinfo="vmcoreinfo" in known,
        rng="virtio-rng-pci" in known,
        actions=re.search(r"^-action .*\bpanic=", options, re.MULTILINE) is not None,
        vmgenid="vmgenid" in known,
        virtio_serial={"virtio-serial-pci", "virtserialport"} <= known,
        uarts=tuple(sorted(known & _UARTS)),
        plugins=re.search(r"^-plugin\b", options, re.MULTILINE) is not None,
        netdevs=tuple(sorted(set(re.findall(r"^-netdev (\w+)", options, re.MULTILINE)))),
        net="virtio-net-pci" in known,
        bridge_helper=helper[1] if helper else "",
    )


def of(qemu: Path, *, deadline: Deadline) -> Features:
    """Return the features of a QEMU.

    Raises:
        HostError: it does not run.
        DeadlineError: it took too long.
    """
    try:
        return cached(qemu, "qemu-features-5", Features, lambda: _ask(qemu, deadline))
    except OSError as error:
        raise HostError(f"cannot read {qemu}: {error.strerror}") from error


def _ask(qemu: Path, deadline: Deadline) -> Features:
    return parse(_output(qemu, "-help", deadline), _output(qemu, "-device help", deadline))


def _output(qemu: Path, words: str, deadline: Deadline) -> str:
    done = process.run([qemu, *words.split()], deadline=deadline.at_most(PROBE_SECONDS), check=False)
    if done.status != 0:
        raise HostError(
            f"`{qemu.name} {words}` ended with status {done.status}",
            hint="reinstall it, or put another QEMU first on PATH",
            detail=process.tail(done.stderr or done.stdout),
        )
    return done.stdout
