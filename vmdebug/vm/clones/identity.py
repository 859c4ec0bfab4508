"""Gives clones on a shared network other addresses and host names, through their shell.

A clone's guest has the MAC address, the IP address and the host name of the original in its memory, and QEMU
loads the MAC address with the state. So a clone is cut off from shared networks before it runs, until it has
addresses of its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vmdebug.deadline import Deadline
from vmdebug.errors import VmError
from vmdebug.network import NONE, Nic
from vmdebug.vm.machine import Vm
from vmdebug.vm.network_cards import NETDEV

SHARED = ("bridge", "segment")
"""The kinds of networks with other machines on them."""

_FUNCTIONS = """\
set -e
busybox=/run/vmdebug/busybox dhcp=/run/vmdebug/dhcp
[ -x $busybox ] || { busybox=busybox dhcp=/etc/dhcp; }
for each in ip hostname; do
	command -v $each >/dev/null || eval "$each() { $busybox $each \\"\\$@\\"; }"
done
change() { # OLD-MAC NEW-MAC ADDRESS
	for each in /sys/class/net/*; do
		[ "$(cat $each/address)" = "$1" ] || continue
		name=${each##*/}
		ip addr flush dev $name
		ip link set dev $name down
		ip link set dev $name address $2
		ip link set dev $name up
		return
	done
	echo "there is no network card with the MAC address $1" >&2
	return 1
}
address() { # MAC ADDRESS
	for each in /sys/class/net/*; do
		[ "$(cat $each/address)" = "$1" ] || continue
		case $2 in
		none) ;;
		dhcp) $busybox udhcpc -i ${each##*/} -q -n -t 5 -T 1 -s $dhcp >&2 ;;
		*) ip addr add $2 broadcast + dev ${each##*/} ;;
		esac
	done
}
"""


def cut_off(vm: Vm) -> None:
    """Drop the frames of a VM to shared networks, and those from there; the guest sees no change."""
    _set_links(vm, up=False)


def change(vm: Vm, before: Sequence[Nic], *, hostname: str = "", deadline: Deadline) -> None:
    """Give a guest the addresses of its VM's network cards, and connect it to shared networks.

    Args:
        vm: The VM.
        before: The cards that the guest knows.
        hostname: Its new host name; "" keeps the old one.
        deadline: When to give up.

    Raises:
        VmError: the guest's shell does not answer, or its programs cannot change the addresses.
        GuestDiedError: the guest has died.
        DeadlineError: it took too long.
    """
    cards = [(old, new) for old, new in zip(before, vm.state.spec.nics, strict=True) if new.kind in SHARED]
    lines = [f"change {old.mac} {new.mac}" for old, new in cards]
    if hostname:
        lines.append(f"hostname {shlex.quote(hostname)}")
    _run(vm, lines, deadline)
    _set_links(vm, up=True)
    _run(vm, [f"address {new.mac} {new.address or NONE}" for _, new in cards], deadline)


def _run(vm: Vm, lines: Sequence[str], deadline: Deadline) -> None:
    if not lines:
        return
    done = vm.exec(_FUNCTIONS + "\n".join(lines), timeout=deadline.left("the guest to change its addresses"))
    if done.status != 0:
        raise VmError(
            f"{vm.name} could not change its addresses and its host name: status {done.status}",
            hint="it needs ip(8) and hostname(1), or vmdebug's initramfs",
            detail=done.stderr.strip(),
        )


def _set_links(vm: Vm, *, up: bool) -> None:
    for number, nic in enumerate(vm.state.spec.nics):
        if nic.kind in SHARED:
            vm.qmp("set_link", name=f"{NETDEV}{number}", up=up)
