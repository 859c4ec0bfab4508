"""The network cards of a guest: the words of the options `net` and `forward`, as frozen values.

    user                  QEMU's user network: out through the host, in through forwarded ports
    bridge=NAME           a bridge of the host, through qemu-bridge-helper
    segment=NAME          a network that only the guests on it see; see `vmdebug.vm.segment`

`ip=ADDRESS/LENGTH` and `mac=MAC` follow after commas.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from vmdebug.errors import UsageError
from vmdebug.spelling import nearest, option

NetKind = Literal["user", "bridge", "segment"]
Protocol = Literal["tcp", "udp"]

NONE = "none"
"""The value of the option `net` for a guest without a network."""

DHCP = "dhcp"
"""`Nic.address` of a card whose address the guest gets over DHCP."""

USER_ADDRESS = "10.0.2.15/24"
"""The guest's address on QEMU's user network. The host is 10.0.2.2; see "Using the user mode network stack"
of QEMU's manual."""

_USER_GATEWAY, _USER_DNS, _USER_MAC = "10.0.2.2", "10.0.2.3", "52:54:00:12:34:56"

LOCALHOST = "127.0.0.1"

RUNNER_VARIABLE = "QEMU_NET_OPTS"
"""The variable with more options for the `-netdev user` of a NixOS VM runner."""

LARGEST_SEGMENT = 254
"""The number of guests on a segment, as its addresses are a /24."""

_LONGEST_INTERFACE = 15
"""Characters of an interface's name: IFNAMSIZ without the final NUL; see netdevice(7)."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,29}")
_FORWARD = re.compile(r"(?:(?:(?P<address>[^:]+):)?(?P<host>\d*):)?(?P<guest>\d+)(?:/(?P<protocol>\w+))?")


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """A port of the host that QEMU forwards to the guest.

    Args:
        guest: The guest's port.
        host: The host's port; 0: QEMU takes a free one.
        address: The address of the host on which QEMU listens.
        protocol: "tcp" or "udp".
    """

    guest: int
    host: int = 0
    address: str = LOCALHOST
    protocol: Protocol = "tcp"

    @property
    def rule(self) -> str:
        """The rule, as `hostfwd` of `-netdev user` takes it."""
        return f"{self.protocol}:{self.address}:{self.host}-:{self.guest}"

    def __str__(self) -> str:
        udp = "/udp" if self.protocol == "udp" else ""
        return f"{self.address}:{self.host}:{self.guest}{udp}"


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """A network card.

    Args:
        kind: What it is connected to; None: nothing, as in a template, whose clones are connected.
        name: The name of the bridge or the segment.
        scope: What tells a segment from others with its name and addresses, which are those of other tests.
        mac: Its MAC address; "": it is chosen at the launch.
        address: The guest's address with the length of its prefix: "10.0.2.15/24"; `dhcp`; "": it is chosen
            at the launch.
        gateway: The gateway, or "".
        dns: The name server, or "".
        forwards: The ports of the host that are forwarded to it.
    """

    kind: NetKind | None
    name: str = ""
    scope: str = ""
    mac: str = ""
    address: str = ""
    gateway: str = ""
    dns: str = ""
    forwards: tuple[Forward, ...] = ()

    @property
    def segment(self) -> str:
        """The name of the segment's directory."""
        return f"{self.name}.{self.scope}" if self.scope else self.name

    @property
    def ip(self) -> str:
        """The guest's address without the length of its prefix; "" if it is unknown here."""
        return "" if self.address in (DHCP, NONE) else self.address.partition("/")[0]


def parse(net: Sequence[str], forward: Sequence[str]) -> tuple[Nic, ...]:
    """Return the network cards of a guest.

    Args:
        net: The option `net`; () is no network, or the user network if there is a port to forward.
        forward: The option `forward`.

    Raises:
        UsageError: a word is invalid, or the options contradict each other.
    """
    words = tuple(net) or (("user",) if forward else ())
    if NONE in words:
        if len(words) > 1:
            raise UsageError(
                f"{option('net', NONE)} is no network, and there are others", hint="leave one out"
            )
        words = ()
    nics = [_nic(each) for each in words]
    for at, nic in enumerate(nics):
        if any(nic.kind == other.kind and nic.name == other.name for other in nics[:at]):
            raise UsageError(f"{option('net', words[at])} is given twice", hint="give each network once")
    forwards = parse_forwards(forward)
    if not forwards:
        return tuple(nics)
    if not any(nic.kind == "user" for nic in nics):
        raise UsageError(
            f"{option('forward', forward[0])} needs QEMU's user network, and the guest has"
            f" {', '.join(words) or 'none'}",
            hint=f"add it: {option('net', 'user')}",
        )
    return tuple(
        msgspec.structs.replace(nic, forwards=forwards) if nic.kind == "user" else nic for nic in nics
    )


def _nic(words: str) -> Nic:
    first, *properties = words.split(",")
    kind, equals, name = first.partition("=")
    if kind not in get_args(NetKind) or bool(equals) != (kind != "user"):
        near = nearest(kind, (*get_args(NetKind), NONE))
        raise UsageError(
            f"{option('net', words)}: there is no such network",
            hint=f"did you mean {near}?"
            if near and near != kind
            else "it is one of user, none, bridge=NAME, segment=NAME",
        )
    given = _properties(words, properties)
    mac = given.get("mac", "")
    match kind:
        case "bridge":
            if not name or len(name) > _LONGEST_INTERFACE or "/" in name:
                raise UsageError(
                    f"{option('net', words)}: {name!r} is not the name of a bridge",
                    hint="`ip link show type bridge` lists them",
                )
            return Nic(kind="bridge", name=name, mac=mac, address=given.get("ip", DHCP))
        case "segment":
            if not _SEGMENT.fullmatch(name):
                raise UsageError(
                    f"{option('net', words)}: {name!r} is not the name of a segment",
                    hint="use up to 30 ASCII letters, digits and _ . - that begin with a letter or a digit",
                )
            return Nic(kind="segment", name=name, mac=mac, address=given.get("ip", ""))
        case _:
            return _user(words, mac, given.get("ip", USER_ADDRESS))


def _user(words: str, mac: str, address: str) -> Nic:
    if address != USER_ADDRESS:
        raise UsageError(
            f"{option('net', words)}: the guest's address on QEMU's user network is always {USER_ADDRESS}",
            hint="leave ip= out",
        )
    return Nic(kind="user", mac=mac or _USER_MAC, address=USER_ADDRESS, gateway=_USER_GATEWAY, dns=_USER_DNS)


def _properties(words: str, properties: Sequence[str]) -> dict[str, str]:
    given = {}
    for each in properties:
        key, _, value = each.partition("=")
        if key == "mac":
            value = value.lower()
            # The lowest bit of the first byte marks a group address.
            if not _MAC.fullmatch(value) or int(value[:2], 16) & 1:
                raise UsageError(
                    f"{option('net', words)}: {each.partition('=')[2]!r} is not the MAC address of a card",
                    hint="write six bytes: 52:54:00:12:34:56",
                )
        elif key == "ip":
            _check_address(words, value)
        else:
            raise UsageError(
                f"{option('net', words)}: unknown property {key!r}",
                hint="there are: ip=ADDRESS/LENGTH, mac=MAC",
            )
        given[key] = value
    return given


def _check_address(words: str, value: str) -> None:
    try:
        ipaddress.IPv4Interface(value)
        if value == DHCP or "/" in value:
            return
    except ValueError:
        if value == DHCP:
            return
    raise UsageError(
        f"{option('net', words)}: {value!r} is not an IPv4 address with the length of its prefix",
        hint="write ip=10.1.2.3/24, or ip=dhcp",
    )


def parse_forwards(words: Sequence[str]) -> tuple[Forward, ...]:
    """Return the ports to forward.

    Args:
        words: Each is [[ADDRESS:]HOST:]GUEST, with /udp at its end or not. An empty HOST, or 0, is any free
            port.

    Raises:
        UsageError: a word is invalid, or a port of the host is given twice.
    """
    found: list[Forward] = []
    for each in words:
        one = _forward(each)
        if one in found or (one.host and _listener(one) in map(_listener, found)):
            what = f"port {one.host} of the host" if one.host else f"a free port for {one.guest}"
            raise UsageError(
                f"{option('forward', each)}: {what} is asked for twice", hint="give each port once"
            )
        found.append(one)
    return tuple(found)


def _listener(forward: Forward) -> tuple[str, str, int]:
    return forward.protocol, forward.address, forward.host


def _forward(words: str) -> Forward:
    match = _FORWARD.fullmatch(words)
    hint = "write [ADDRESS:]HOST:GUEST, with /udp at the end for UDP; an empty HOST is any free port"
    if match is None:
        raise UsageError(f"{option('forward', words)}: not a port to forward", hint=hint)
    protocol = match["protocol"] or "tcp"
    if protocol not in get_args(Protocol):
        raise UsageError(f"{option('forward', words)}: {protocol!r} is neither tcp nor udp", hint=hint)
    host, guest = int(match["host"] or 0), int(match["guest"])
    if host > 65535 or not 1 <= guest <= 65535:  # noqa: PLR2004 - the largest port
        raise UsageError(f"{option('forward', words)}: a port is a number up to 65535", hint=hint)
    address = match["address"] or LOCALHOST
    try:
        ipaddress.IPv4Address(address)
    except ValueError as error:
        raise UsageError(
            f"{option('forward', words)}: {address!r} is not an IPv4 address of this machine",
            hint="leave it out for 127.0.0.1; 0.0.0.0 is every interface, for other machines",
        ) from error
    return Forward(guest=guest, host=host, address=address, protocol=protocol)  # type: ignore[arg-type]


def free_ports(nics: Sequence[Nic]) -> tuple[Nic, ...]:
    """Return cards with any free port of the host for each that is forwarded: only one VM can have a port."""
    return tuple(
        msgspec.structs.replace(
            nic, forwards=tuple(msgspec.structs.replace(each, host=0) for each in nic.forwards)
        )
        for nic in nics
    )


def with_ports(nics: Sequence[Nic], found: Sequence[Forward]) -> tuple[Nic, ...]:
    """Return cards with the ports that QEMU has chosen.

    Args:
        nics: The cards.
        found: What QEMU forwards.
    """
    rest = list(found)

    def chosen(wanted: Forward) -> Forward:
        for each in rest:
            same = (each.protocol, each.address, each.guest) == (
                wanted.protocol,
                wanted.address,
                wanted.guest,
            )
            if same and wanted.host in (0, each.host):
                rest.remove(each)
                return each
        return wanted

    # Those with a port first, so that a free one for the same port of the guest does not get it.
    order = sorted({each for nic in nics for each in nic.forwards}, key=lambda each: not each.host)
    known = {each: chosen(each) for each in order}
    return tuple(
        msgspec.structs.replace(nic, forwards=tuple(known[each] for each in nic.forwards)) for nic in nics
    )


_FORWARDED = re.compile(r"^\s*(TCP|UDP)\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)", re.MULTILINE)


def read_forwards(usernet: str) -> tuple[Forward, ...]:
    """Return the ports that QEMU forwards.

    Args:
        usernet: What its monitor command `info usernet` prints.
    """
    return tuple(
        Forward(
            protocol="tcp" if protocol == "TCP" else "udp",
            address=address if address != "*" else "0.0.0.0",  # noqa: S104 - only printed
            host=int(host),
            guest=int(guest),
        )
        for protocol, address, host, guest in _FORWARDED.findall(usernet)
    )
