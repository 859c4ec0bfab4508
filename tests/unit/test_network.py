from __future__ import annotations

import pytest

from vmdebug import addressing, network
from vmdebug.errors import UsageError
from vmdebug.network import Forward, Nic

LAB = Nic(kind="segment", name="lab")


def test_the_networks() -> None:
    user, bridge, segment = network.parse(["user", "bridge=br0", "segment=lab"], [])
    assert user == Nic(
        kind="user",
        mac="52:54:00:12:34:56",
        address="10.0.2.15/24",
        gateway="10.0.2.2",
        dns="10.0.2.3",
    )
    assert bridge == Nic(kind="bridge", name="br0", address="dhcp")
    assert segment == LAB
    assert network.parse([], []) == network.parse(["none"], []) == ()


def test_properties() -> None:
    (nic,) = network.parse(["segment=lab,ip=192.168.7.2/16,mac=52:54:00:AB:cd:ef"], [])
    assert nic == Nic(kind="segment", name="lab", mac="52:54:00:ab:cd:ef", address="192.168.7.2/16")
    (nic,) = network.parse(["bridge=br0,ip=192.168.7.2/16"], [])
    assert nic.address == "192.168.7.2/16"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["usr"], 'net="usr": there is no such network'),
        (["tap"], 'net="tap": there is no such network'),
        (["user=1"], 'net="user=1": there is no such network'),
        (["bridge"], 'net="bridge": there is no such network'),
        (["bridge="], "'' is not the name of a bridge"),
        (["bridge=a-name-that-is-too-long"], "is not the name of a bridge"),
        (["segment=../x"], "'../x' is not the name of a segment"),
        (["segment=a,mtu=1"], "unknown property 'mtu'"),
        (["segment=a,ip=10.0.0.1"], "'10.0.0.1' is not an IPv4 address with the length"),
        (["segment=a,ip=10.0.0.1/33"], "'10.0.0.1/33' is not an IPv4 address"),
        (["segment=a,mac=01:00:5e:00:00:01"], "'01:00:5e:00:00:01' is not the MAC address of a card"),
        (["user,ip=10.0.2.16/24"], "is always 10.0.2.15/24"),
        (["none", "user"], "and there are others"),
        (["segment=a", "segment=a"], "is given twice"),
        (["user", "user"], "is given twice"),
    ],
)
def test_what_is_no_network_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        network.parse(words, [])
    assert says in caught.value.message
    assert caught.value.hint


def test_a_mistyped_network() -> None:
    with pytest.raises(UsageError) as caught:
        network.parse(["segmnt=lab"], [])
    assert caught.value.hint == "did you mean segment?"


@pytest.mark.parametrize(
    ("words", "forward"),
    [
        ("8080:80", Forward(host=8080, guest=80)),
        (":80", Forward(guest=80)),
        ("80", Forward(guest=80)),
        ("0:80", Forward(guest=80)),
        ("5353:53/udp", Forward(host=5353, guest=53, protocol="udp")),
        ("0.0.0.0:8080:80/tcp", Forward(host=8080, guest=80, address="0.0.0.0")),  # noqa: S104 - only parsed
        ("127.0.0.2::80", Forward(guest=80, address="127.0.0.2")),
    ],
)
def test_ports_to_forward(words: str, forward: Forward) -> None:
    assert network.parse_forwards([words]) == (forward,)
    (nic,) = network.parse([], [words])
    assert (nic.kind, nic.forwards) == ("user", (forward,))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("x", "not a port to forward"),
        ("8080:", "not a port to forward"),
        ("1:2:3:4", "not a port to forward"),
        ("8080:80/sctp", "'sctp' is neither tcp nor udp"),
        ("8080:0", "a port is a number up to 65535"),
        ("65536:80", "a port is a number up to 65535"),
        ("localhost:8080:80", "'localhost' is not an IPv4 address of this machine"),
    ],
)
def test_what_is_no_port_is_refused(words: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        network.parse_forwards([words])
    assert f'forward="{words}": {says}' in caught.value.message


def test_a_port_of_the_host_is_forwarded_once() -> None:
    with pytest.raises(UsageError, match="port 80 of the host is asked for twice"):
        network.parse_forwards(["80:80", "80:81"])
    with pytest.raises(UsageError, match="a free port for 80 is asked for twice"):
        network.parse_forwards([":80", "0:80"])
    assert len(network.parse_forwards(["80:80", "80:80/udp", "127.0.0.2:80:80", ":80", ":81"])) == 5


def test_only_the_user_network_forwards() -> None:
    with pytest.raises(UsageError, match="needs QEMU's user network, and the guest has segment=lab"):
        network.parse(["segment=lab"], ["8080:80"])
    with pytest.raises(UsageError, match="needs QEMU's user network, and the guest has none"):
        network.parse(["none"], ["8080:80"])
    segment, user = network.parse(["segment=lab", "user"], ["8080:80"])
    assert not segment.forwards
    assert user.forwards == (Forward(host=8080, guest=80),)


def test_a_members_addresses_depend_on_its_segment_and_number() -> None:
    first = addressing.member(LAB, 1)
    assert (first.mac, first.address, first.ip) == ("52:54:00:b1:c4:01", "10.177.196.1/24", "10.177.196.1")
    assert addressing.member(LAB, 254).address == "10.177.196.254/24"
    assert addressing.member(Nic(kind="segment", name="b"), 1).address.startswith("10.")
    given = Nic(kind="segment", name="lab", address="10.1.1.1/8", mac="52:54:00:00:00:01")
    assert addressing.member(given, 9) == given


def test_segments_with_the_same_addresses_are_refused() -> None:
    names = {}
    for number in range(100_000):
        subnet = addressing._subnet(f"s{number}")
        if subnet in names:
            break
        names[subnet] = f"s{number}"
    both = network.parse([f"segment={names[subnet]}", f"segment=s{number}"], [])
    with pytest.raises(UsageError, match=f"{names[subnet]} and s{number} have the same addresses"):
        addressing.check_subnets(both)
    addressing.check_subnets(network.parse(["segment=a", "segment=b"], []))


def test_a_card_on_a_bridge_differs_between_machines_and_vms() -> None:
    nic = Nic(kind="bridge", name="br0")
    macs = {addressing.bridged(nic, machine=machine, vm=vm).mac for machine in "ab" for vm in "cd"}
    assert len(macs) == 4
    assert all(mac.startswith("52:54:00:") for mac in macs)


def test_the_cards_of_a_clone() -> None:
    segment = addressing.member(LAB, 2)
    assert addressing.another(segment) == LAB
    given = addressing.member(Nic(kind="segment", name="lab", address="10.1.1.1/8"), 2)
    assert addressing.another(given) == Nic(kind="segment", name="lab", address="none")
    bridge = Nic(kind="bridge", name="br0", mac="52:54:00:00:00:01", address="dhcp")
    assert addressing.another(bridge) == Nic(kind="bridge", name="br0", address="dhcp")
    (user,) = network.parse([], ["8080:80"])
    assert addressing.another(user) == user
    assert network.free_ports([user])[0].forwards == (Forward(guest=80),)


def test_the_cards_of_a_template() -> None:
    user, segment, bridge = addressing.unplugged(
        network.parse(["user", "segment=lab", "bridge=br0"], [":80"])
    )
    assert (user.kind, user.forwards) == ("user", ())
    assert segment == Nic(kind=None, mac="52:54:00:00:00:01")
    assert bridge.kind == "bridge"


def test_kernel_parameters() -> None:
    nics = (
        *network.parse(["user"], []),
        addressing.member(LAB, 1),
        Nic(kind="bridge", name="b", address="dhcp"),
    )
    assert addressing.for_init(nics) == (
        "vmdebug.net=52:54:00:12:34:56,10.0.2.15/24,10.0.2.2,10.0.2.3",
        "vmdebug.net=52:54:00:b1:c4:01,10.177.196.1/24,,",
        "vmdebug.net=,dhcp,,",
    )
    assert addressing.for_init([Nic(kind=None, mac="m")]) == ("vmdebug.net=m,none,,",)
    # The kernel uses the last one.
    assert addressing.for_kernel(nics) == (
        "ip=:::::eth2:dhcp",
        "ip=10.177.196.1:::255.255.255.0::eth1:off",
        "ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off:10.0.2.3",
    )


# Output of QEMU 7.2.22.
USERNET = """\
Hub -1 (net0):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  TCP[HOST_FORWARD]   9       127.0.0.1 46487       10.0.2.15    80     0     0\r
  TCP[HOST_FORWARD]   8       127.0.0.1 42221       10.0.2.15    22     0     0\r
  TCP[ESTABLISHED]   10       10.0.2.15 42221       10.0.2.2     22     0     0\r
  UDP[HOST_FORWARD]   3               * 45111       10.0.2.15    53     0     0\r
"""


def test_the_ports_that_qemu_has_chosen() -> None:
    found = network.read_forwards(USERNET)
    assert found == (
        Forward(host=46487, guest=80),
        Forward(host=42221, guest=22),
        Forward(host=45111, guest=53, address="0.0.0.0", protocol="udp"),  # noqa: S104 - only compared
    )
    nics = network.parse([], [":22", "46487:80", "0.0.0.0::53/udp"])
    (nic,) = network.with_ports(nics, found)
    assert [each.host for each in nic.forwards] == [42221, 46487, 45111]


def test_a_free_port_and_a_given_one_for_one_of_the_guest() -> None:
    found = (Forward(host=1001, guest=22), Forward(host=1002, guest=22))
    for words in (":22", "1001:22"), (":22", "1002:22"):
        (nic,) = network.with_ports(network.parse([], words), found)
        assert sorted(each.host for each in nic.forwards) == [1001, 1002]
        assert nic.forwards[1].host == int(words[1][:4])
