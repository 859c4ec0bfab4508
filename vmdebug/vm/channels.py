"""QEMU's options for the ways into the guest: virtio-serial ports and a second UART; pure.

A port serves one client at a time, and each command needs one, so the number of ports limits the number of
commands at once. `vmdebug.channel` has the clients.
"""

from __future__ import annotations

from vmdebug.arch import Arch
from vmdebug.vm.features import Features
from vmdebug.vm.qemuargs import Options, value
from vmdebug.vm.rundir import SHELL_PORTS, RunDir

PORT_NAME = "org.vmdebug.shell."
"""Prefix of the names of the agent's ports; a number follows."""

GUEST_AGENT_NAME = "org.qemu.guest_agent.0"
"""Default name of qemu-guest-agent's port."""

_BUS = "vmdebug"

_WITHOUT_ISA = ("microvm",)
"""Machine types to which no UART can be added."""


def devices(rundir: RunDir, *, arch: Arch, features: Features, given: Options) -> tuple[str, ...]:
    """Return the options for the guest's ports.

    Args:
        rundir: Where their sockets are.
        arch: The kernel's architecture.
        features: What this QEMU has.
        given: The options of the user and of a runner.
    """
    words: list[str] = []
    if features.virtio_serial:
        # The virtio specification reserves port 0 for a console; one more port is qemu-guest-agent's.
        words += ["-device", f"virtio-serial-pci,id={_BUS},max_ports={SHELL_PORTS + 2}"]
        for number, address in enumerate(rundir.shell_ports, 1):
            words += _chardev(f"shell{number}", str(address.socket))
            words += _port(number, f"shell{number}", f"{PORT_NAME}{number}")
        if GUEST_AGENT_NAME not in given.values("name", "device"):
            words += _chardev("guest-agent", str(rundir.guest_agent.socket))
            words += _port(SHELL_PORTS + 1, "guest-agent", GUEST_AGENT_NAME)
    driver = arch.second_serial.partition(",")[0]
    if driver in features.uarts and not set(_WITHOUT_ISA) & set(given.values("type", "machine", "M")):
        words += _chardev("shell-line", str(rundir.shell_line.socket))
        words += ["-device", f"{arch.second_serial},chardev=shell-line"]
    return tuple(words)


def _chardev(name: str, path: str) -> tuple[str, ...]:
    return ("-chardev", f"socket,id={name},path={value(path)},server=on,wait=off")


def _port(number: int, chardev: str, name: str) -> tuple[str, ...]:
    return ("-device", f"virtserialport,bus={_BUS}.0,nr={number},chardev={chardev},name={name}")
