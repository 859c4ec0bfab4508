"""The addresses of network cards: on segments and bridges, of clones, and how a guest gets them."""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Sequence

import msgspec

from vmdebug.errors import UsageError
from vmdebug.network import DHCP, NONE, Nic


def member(nic: Nic, number: int) -> Nic:
    """Return the card of a guest on a segment, with its MAC address and IP address.

    The addresses depend only on the name of the segment and on the number, so they are the same in each run.

    Args:
        nic: The card.
        number: The guest's number on the segment, from 1.
    """
    high, low = _subnet(nic.name)
    return msgspec.structs.replace(
        nic,
        mac=nic.mac or f"52:54:00:{high:02x}:{low:02x}:{number:02x}",
        address=nic.address or f"10.{high}.{low}.{number}/24",
    )


def _subnet(segment: str) -> tuple[int, int]:
    """Return the second and third byte of a segment's addresses, 10.128.0 to 10.255.255."""
    mixed = zlib.crc32(segment.encode())
    return 128 + (mixed >> 8) % 128, mixed % 256


def check_subnets(nics: Sequence[Nic]) -> None:
    """Check that the segments of one guest have different addresses.

    Raises:
        UsageError: two have the same.
    """
    seen: dict[tuple[int, int], str] = {}
    for nic in nics:
        if nic.kind == "segment" and not nic.address:
            other = seen.setdefault(_subnet(nic.name), nic.name)
            if other != nic.name:
                raise UsageError(
                    f"the segments {other} and {nic.name} have the same addresses",
                    hint="choose another name for one of them, or give addresses with ip=",
                )


def bridged(nic: Nic, *, machine: str, vm: str) -> Nic:
    """Return a card on a bridge with a MAC address that differs between machines, users and VMs.

    Args:
        nic: The card.
        machine: What identifies this machine and user.
        vm: The name of the VM.
    """
    mixed = zlib.crc32(f"{machine} {vm}".encode())
    mac = f"52:54:00:{mixed >> 16 & 255:02x}:{mixed >> 8 & 255:02x}:{mixed & 255:02x}"
    return msgspec.structs.replace(nic, mac=nic.mac or mac)


def scoped(nics: Sequence[Nic], scope: str) -> tuple[Nic, ...]:
    """Return cards on segments of a scope."""
    return tuple(msgspec.structs.replace(nic, scope=scope) if nic.kind == "segment" else nic for nic in nics)


def scope(nics: Sequence[Nic]) -> str:
    """Return the scope of the segments; "" if there is none."""
    return next((nic.scope for nic in nics if nic.scope), "")


def unplugged(nics: Sequence[Nic]) -> tuple[Nic, ...]:
    """Return cards that are on no segment and forward no port, for a VM whose guest is only saved.

    The guest sees no difference: the cards themselves and their MAC addresses are the same.
    """
    return tuple(
        msgspec.structs.replace(
            nic, kind=None, name="", scope="", mac=nic.mac or f"52:54:00:00:00:{number:02x}", forwards=()
        )
        if nic.kind == "segment"
        else msgspec.structs.replace(nic, forwards=())
        for number, nic in enumerate(nics)
    )


def another(nic: Nic) -> Nic:
    """Return the card of a clone that gets addresses of its own on a bridge or a segment.

    An address that the user has given stays with the original, and the clone has none.
    """
    match nic.kind:
        case "bridge":
            return msgspec.structs.replace(nic, mac="", address=nic.address if nic.address == DHCP else NONE)
        case "segment":
            number = int(nic.ip.rpartition(".")[2] or 0)
            given = nic.address not in ("", member(Nic(kind="segment", name=nic.name), number).address)
            return msgspec.structs.replace(nic, mac="", address=NONE if given else "")
        case _:
            return nic


def for_init(nics: Sequence[Nic]) -> tuple[str, ...]:
    """Return kernel parameters for the init of vmdebug's initramfs, which configures cards; see net.sh."""
    return tuple(f"vmdebug.net={nic.mac},{nic.address or NONE},{nic.gateway},{nic.dns}" for nic in nics)


def for_kernel(nics: Sequence[Nic]) -> tuple[str, ...]:
    """Return kernel parameters with which the kernel, or the init of a distribution, configures the cards.

    See Documentation/admin-guide/nfs/nfsroot.rst, dracut.cmdline(7), systemd-network-generator(8). The kernel
    itself uses only the last one.
    """
    return tuple(_ip(nic, f"eth{number}") for number, nic in reversed(list(enumerate(nics))) if nic.address)


def _ip(nic: Nic, interface: str) -> str:
    if nic.address == DHCP:
        return f"ip=:::::{interface}:dhcp"
    mask = ipaddress.IPv4Interface(nic.address).netmask
    dns = f":{nic.dns}" if nic.dns else ""
    return f"ip={nic.ip}::{nic.gateway}:{mask}::{interface}:off{dns}"


def by_hand(nic: Nic) -> str:
    """Return the commands that configure a guest's first card."""
    if nic.address in ("", DHCP):
        return "dhclient eth0"
    gateway = f"; ip route add default via {nic.gateway}" if nic.gateway else ""
    return f"ip link set eth0 up; ip addr add {nic.address} dev eth0{gateway}"
