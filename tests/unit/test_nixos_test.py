"""A node of a NixOS test: the driver's options, and what `start_node` refuses."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import vmdebug
from tests.fixtures.nixosdriver import StartCommand
from vmdebug.nixos_test import driver_options, vm_name


def given(*, allow_reboot: bool) -> list[str]:
    command = StartCommand("/nix/store/x/bin/run-a-vm")
    return shlex.split(command.cmd(Path("/t/monitor"), Path("/t/qmp"), Path("/t/shell"), allow_reboot))[1:]


def test_the_drivers_shell_and_monitor_stay_and_its_serial_line_is_ours() -> None:
    assert driver_options(given(allow_reboot=False)) == (
        *("-qmp", "unix:/t/qmp,server=on,wait=off"),
        *("-monitor", "unix:/t/monitor"),
        *("-chardev", "socket,id=shell,path=/t/shell"),
        *("-device", "virtio-serial"),
        *("-device", "virtconsole,chardev=shell"),
        *("-device", "virtio-rng-pci"),
    )


def test_a_node_may_reboot() -> None:
    assert driver_options(given(allow_reboot=True))[-2:] == ("-action", "reboot=reset")


def test_a_long_name_is_shortened_to_a_vms() -> None:
    assert vm_name("machine") == "machine"
    assert len(vm_name("m" * 64)) == 40


class Node:
    name = "server"
    booted = False
    start_command: Any = None
    state_dir = "/t"

    def start(self) -> None:
        self.start_command.run("/t", "/t/shared", "/t/monitor", "/t/qmp", "/t/shell", False)

    def execute(self) -> None:
        raise NotImplementedError

    def log(self) -> None:
        raise NotImplementedError


def test_a_node_that_runs_already_is_refused() -> None:
    node = Node()
    node.booted = True
    with pytest.raises(vmdebug.StateError, match="the node server is already running") as caught:
        vmdebug.start_node(node)
    assert caught.value.hint == "call start_node instead of start or start_all"


def test_a_container_is_no_vm() -> None:
    with pytest.raises(vmdebug.UsageError, match="the node server is not a VM"):
        vmdebug.start_node(Node())


def test_an_unknown_option_is_named_before_anything_starts() -> None:
    node = Node()
    node.start_command = StartCommand("/nix/store/x/bin/run-server-vm")
    with pytest.raises(vmdebug.UsageError, match="there is no option"):
        vmdebug.start_node(node, hald=True)  # type: ignore[call-arg]


def test_the_node_has_its_own_start_command_again_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARED_DIR", "")
    node = Node()
    own = node.start_command = StartCommand(str(tmp_path / "bin/run-server-vm"))
    with pytest.raises(vmdebug.UsageError):
        vmdebug.start_node(node)
    assert node.start_command is own
