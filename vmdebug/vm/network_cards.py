"""QEMU's options for network cards; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmdebug.network import Nic
from vmdebug.vm.qemuargs import value
from vmdebug.vm.rundir import RunDir

NETDEV = "net"
"""Prefix of the ids of network backends; the number of the card follows."""


def attached(nics: Sequence[Nic], connected: Mapping[str, int], rundir: RunDir) -> tuple[str, ...]:
    """Attach the network cards, without their ROM, which would boot over the network.

    Args:
        nics: The cards.
        connected: By the names of segments, descriptors of the connections to them. A plan has none, and
            names the sockets.
        rundir: Where the VM's sockets and logs are.
    """
    words: list[str] = []
    for number, nic in enumerate(nics):
        device = f"virtio-net-pci,id=nic{number},netdev={NETDEV}{number},mac={nic.mac},romfile="
        words += ["-netdev", _backend(nic, f"{NETDEV}{number}", connected, rundir), "-device", device]
    return tuple(words)


def _backend(nic: Nic, name: str, connected: Mapping[str, int], rundir: RunDir) -> str:
    match nic.kind:
        case "user":
            rules = "".join(f",hostfwd={each.rule}" for each in nic.forwards)
            return f"user,id={name}{rules}"
        case "bridge":
            return f"bridge,id={name},br={value(nic.name)}"
        case "segment":
            if nic.name in connected:
                return f"stream,id={name},server=off,addr.type=fd,addr.str={connected[nic.name]}"
            return (
                f"stream,id={name},server=off,addr.type=unix,addr.path={value(rundir.segment(nic.segment))}"
            )
        case None:
            # A hub without other ports.
            return f"hubport,id={name},hubid={name.removeprefix(NETDEV)}"
