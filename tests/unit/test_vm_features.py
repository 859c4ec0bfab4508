from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.vm import features
from vmdebug.vm.features import Features

# Output of QEMU 7.2.22 (Debian 12), shortened.
OPTIONS = """\
QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)
Copyright (c) 2003-2022 Fabrice Bellard and the QEMU Project developers
-no-reboot      exit instead of rebooting
-action reboot=reset|shutdown
                   action when guest reboots [default=reset]
-action panic=pause|shutdown|exit-failure|none
                   action when guest panics [default=shutdown]
-netdev user,id=str[,ipv4=on|off][,net=addr[/mask]][,host=addr]
-netdev bridge,id=str[,br=bridge][,helper=helper]
                configure a host TAP network backend with ID 'str' that is
                connected to a bridge (default=br0)
                using the program 'helper (default=/usr/lib/qemu/qemu-bridge-helper)
-netdev stream,id=str[,server=on|off],addr.type=inet,addr.host=host,addr.port=port
-netdev stream,id=str[,server=on|off],addr.type=unix,addr.path=path[,abstract=on|off]
"""
DEVICES = """\
Storage devices:
name "virtio-blk-pci", bus PCI, alias "virtio-blk"

Misc devices:
name "pvpanic", bus ISA
name "pvpanic-pci", bus PCI
name "virtio-net-pci", bus PCI, alias "virtio-net"
name "virtio-rng-pci", bus PCI, alias "virtio-rng"
name "vmcoreinfo"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fake_qemu(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_what_debians_qemu_has() -> None:
    assert features.parse(OPTIONS, DEVICES) == Features(
        version="7.2.22",
        pvpanic="pvpanic-pci",
        vmcoreinfo=True,
        rng=True,
        actions=True,
        netdevs=("bridge", "stream", "user"),
        net=True,
        bridge_helper="/usr/lib/qemu/qemu-bridge-helper",
    )


def test_the_isa_device_is_second_best() -> None:
    assert features.parse("", DEVICES.replace("pvpanic-pci", "x")).pvpanic == "pvpanic"


def test_a_qemu_without_anything() -> None:
    assert features.parse("", "") == Features()


def test_a_qemu_is_asked_once(tmp_path: Path, cache: None) -> None:
    asked = tmp_path / "asked"
    qemu = fake_qemu(tmp_path / "qemu", f'echo "$*" >> {asked}\necho \'name "vmcoreinfo"\'')
    for _ in range(2):
        assert features.of(qemu, deadline=Deadline.after(20)) == Features(vmcoreinfo=True)
    assert asked.read_text() == "-help\n-device help\n"
    fake_qemu(qemu, "exit 0 # another one")
    assert features.of(qemu, deadline=Deadline.after(20)) == Features()


def test_a_qemu_that_does_not_run_says_why(tmp_path: Path, cache: None) -> None:
    qemu = fake_qemu(tmp_path / "qemu", "echo libfoo.so is missing >&2; exit 127")
    with pytest.raises(HostError, match="ended with status 127") as caught:
        features.of(qemu, deadline=Deadline.after(20))
    assert caught.value.detail == "libfoo.so is missing"


def test_a_qemu_that_is_not_there(tmp_path: Path, cache: None) -> None:
    with pytest.raises(HostError, match="No such file"):
        features.of(tmp_path / "qemu", deadline=Deadline.after(20))
