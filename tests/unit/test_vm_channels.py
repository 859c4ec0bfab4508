"""The options that give a guest its ports, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug.arch import by_name
from vmdebug.vm import channels, qemuargs
from vmdebug.vm.features import Features, parse
from vmdebug.vm.rundir import LONGEST_SOCKET_PATH, SHELL_PORTS, RunDir

RUNDIR = RunDir(Path("/run/a,b/vm"))
BOTH = Features(virtio_serial=True, uarts=("isa-serial", "pci-serial"))


def devices(*given: str, features: Features = BOTH) -> list[str]:
    options = qemuargs.parse(given)
    return list(channels.devices(RUNDIR, arch=by_name("x86_64"), features=features, given=options))


def test_a_port_for_each_command_one_for_qemu_guest_agent_and_a_uart() -> None:
    words = devices()
    assert words[:10] == [
        *("-device", f"virtio-serial-pci,id=vmdebug,max_ports={SHELL_PORTS + 2}"),
        *("-chardev", "socket,id=shell1,path=/run/a,,b/vm/sh01.sock,server=on,wait=off"),
        *("-device", "virtserialport,bus=vmdebug.0,nr=1,chardev=shell1,name=org.vmdebug.shell.1"),
        *("-chardev", "socket,id=shell2,path=/run/a,,b/vm/sh02.sock,server=on,wait=off"),
        *("-device", "virtserialport,bus=vmdebug.0,nr=2,chardev=shell2,name=org.vmdebug.shell.2"),
    ]
    assert words[-8:] == [
        *("-chardev", "socket,id=guest-agent,path=/run/a,,b/vm/qga.sock,server=on,wait=off"),
        "-device",
        f"virtserialport,bus=vmdebug.0,nr={SHELL_PORTS + 1},chardev=guest-agent,name=org.qemu.guest_agent.0",
        *("-chardev", "socket,id=shell-line,path=/run/a,,b/vm/shline.sock,server=on,wait=off"),
        *("-device", "isa-serial,index=3,chardev=shell-line"),
    ]
    assert len(words) == 2 + 4 * SHELL_PORTS + 8


def test_twenty_commands_run_at_once_and_the_bus_has_room() -> None:
    assert 20 <= SHELL_PORTS <= 31 - 1


def test_a_guest_that_has_qemu_guest_agent_already_gets_no_second_one() -> None:
    given = ("-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0")
    assert "qga.sock" not in " ".join(devices(*given))


def test_a_qemu_without_such_devices_gets_none() -> None:
    assert devices(features=Features()) == []
    assert devices(features=Features(uarts=("isa-serial",))) == [
        *("-chardev", "socket,id=shell-line,path=/run/a,,b/vm/shline.sock,server=on,wait=off"),
        *("-device", "isa-serial,index=3,chardev=shell-line"),
    ]


@pytest.mark.parametrize("given", [("-machine", "microvm"), ("-M", "microvm,pcie=on")])
def test_a_machine_without_an_isa_bus_gets_no_uart(given: tuple[str, ...]) -> None:
    assert "isa-serial" not in " ".join(devices(*given))


def test_what_a_qemu_has_is_read_out_of_its_list_of_devices() -> None:
    listed = 'name "virtio-serial-pci"\nname "virtserialport"\nname "isa-serial", bus ISA\n'
    assert parse("", listed) == Features(virtio_serial=True, uarts=("isa-serial",))
    assert not parse("", 'name "virtserialport"\n').virtio_serial


def test_no_socket_has_a_longer_path_than_the_console() -> None:
    longest = max(
        len(str(each.socket)) for each in (*RUNDIR.shell_ports, RUNDIR.shell_line, RUNDIR.guest_agent)
    )
    assert longest <= len(str(RUNDIR.console)) <= LONGEST_SOCKET_PATH
